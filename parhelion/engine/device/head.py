"""A draft head on the device: it guesses from hidden states that the target's steps leave there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from parhelion.distributed.group import Group
from parhelion.engine.device.bounds import choose_samples
from parhelion.engine.device.sampling import DeviceSampler
from parhelion.engine.device.state import DeviceState
from parhelion.engine.device.step import Mode, StepOutputs
from parhelion.engine.step_layout import Bucket, StepInts
from parhelion.models.decoder import HiddenStates
from parhelion.models.eagle3 import Eagle3Head


class HeadFeatures:
    """What the head reads at each position: of the last step that it followed, and behind its own last guesses.

    The former lie in the order of that step's tokens, the latter behind them, in a row for every slot. A table says of
    each slot where to look: how far the place of its next feature is from the position that the feature belongs to.

    Args:
        head: with its weights.
        layers: of the target, before which the hidden states are taken.
        max_num_tokens: of a step of the target.
        state: of all slots.
    """

    def __init__(self, head: Eagle3Head, layers: tuple[int, ...], max_num_tokens: int, state: DeviceState) -> None:
        self._head = head
        self._layers = layers
        self._spare_slot, self._spare_position = state.spare_slot, state.spare_position
        self._own = max_num_tokens
        shape = (max_num_tokens + state.spare_slot + 1, head.config.layer.hidden_size)
        self._features = torch.zeros(shape, dtype=head.dtype, device=head.device)
        self._shifts = torch.zeros(state.spare_slot + 1, dtype=torch.int64, device=head.device)

    def wanted(self) -> HiddenStates:
        """See ``StatesReader``."""
        return HiddenStates(self._layers)

    def keep(self, ints: StepInts, states: HiddenStates) -> None:
        """See ``StatesReader``."""
        features = self._head.features(torch.cat(states.taken, dim=-1))
        # Padding may hold anything, and a slot whose features are gone may look there: it must find finite numbers.
        features = features.masked_fill(ints.token_row[:, None] < 0, 0)
        self._features[: len(features)] = features
        self._shifts[ints.row_slot.long()] = (ints.query_start_loc[1:] - ints.seq_lens).long()

    def of(self, ints: StepInts) -> torch.Tensor:
        """[num_tokens, hidden_size] the features of a pass's tokens; any for those whose features are gone."""
        slots = ints.row_slot.long()[ints.token_row.long()]
        places = self._shifts[slots] + ints.token_position.long()
        # The last row is the spare slot's.
        return self._features[places.clamp(0, len(self._features) - 2)]

    def leave(self, ints: StepInts, features: torch.Tensor) -> None:
        """Keep the features [num_rows, hidden_size] that the head left at its rows' last tokens, which go with their
        guesses; those of rows that do not sample are of no use.
        """
        slots = torch.where(ints.sample_position == self._spare_position, self._spare_slot, ints.row_slot).long()
        self._features[self._own + slots] = features
        self._shifts[slots] = self._own + slots - ints.seq_lens


class HeadStep:
    """A pass of an EAGLE-3 head, as a ``Step``: of rows that stay one token behind what is known.

    Args:
        head: with its weights.
        kv_cache: a tensor a layer of the head's.
        features: what it reads.
        state: of all slots.
        sampler: draws tokens.
        group: the target's ranks, which must guess alike.
    """

    def __init__(
        self,
        head: Eagle3Head,
        kv_cache: Sequence[torch.Tensor],
        features: HeadFeatures,
        state: DeviceState,
        sampler: DeviceSampler,
        group: Group,
    ) -> None:
        self._head = head
        self._kv_cache = kv_cache
        self._features = features
        self._state = state
        self._sampler = sampler
        self._group = group

    def run(self, buffer: torch.Tensor, bucket: Bucket, mode: Mode) -> StepOutputs:
        """See ``Step``; the host never chooses."""
        with torch.inference_mode():
            return self._run(buffer, bucket, mode)

    def _run(self, buffer: torch.Tensor, bucket: Bucket, mode: Mode) -> StepOutputs:
        state = self._state
        ints = state.take_in(buffer, bucket)
        if bucket.verifies or not bucket.decodes:
            ints = choose_samples(ints, state.num_wrong, state.spare_position)
        tensors = self._state.tensors(ints, bucket, tokens_ahead=1)
        hidden, features = self._head.forward(tensors.batch, self._features.of(ints), self._kv_cache)
        last = hidden
        if not bucket.decodes:
            last, features = (each[ints.sample_token.long()] for each in (hidden, features))
        if mode is Mode.GREEDY:
            token_ids = self._head.likeliest(last)
        else:
            token_ids = self._sampler.draw(self._head.compute_logits(last).float(), ints, self._state)
        if mode is not Mode.GREEDY or self._head.group.is_alone:
            # Ranks that share the head have found the same likeliest tokens.
            token_ids = self._group.from_first(token_ids)
        self._features.leave(ints, features)
        self._state.store(tensors.sample_index, token_ids)
        return StepOutputs(token_ids, tensors.sample_index, hidden)
