"""One step on the device, from the buffer of integers to the sampled ids: what a CUDA graph captures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch

from parhelion.distributed.group import Group
from parhelion.distributed.sampling import Among
from parhelion.engine.device.bounds import count_wrong
from parhelion.engine.device.sampling import DeviceSampler
from parhelion.engine.device.stage import StageBuffers
from parhelion.engine.device.state import DeviceState
from parhelion.engine.step_layout import Bucket, StepInts
from parhelion.layers.step_batch import StepBatch
from parhelion.models.decoder import DecoderModel, HiddenStates


class Mode(Enum):
    """Who chooses the tokens: the device greedily, the device by drawing, or, for requests that ask for more than that,
    the host from the logits. Ranks that share the model may draw in other ways among few tokens, and among all.
    """

    GREEDY = "greedy"
    DRAW = "draw"
    DRAW_AMONG_FEW = "draw among few"
    DRAW_AMONG_ALL = "draw among all"
    HOST = "host"


_AMONG = {Mode.DRAW: Among.ANY, Mode.DRAW_AMONG_FEW: Among.FEW, Mode.DRAW_AMONG_ALL: Among.ALL}


@dataclass(frozen=True)
class StepOutputs:
    """What a step leaves on the device.

    Attributes:
        token_ids: [num_rows] int64; meaningless for rows that do not sample or that the host chooses for, and of stages
            before the last.
        sample_index: [num_rows] int64, where these go; see ``StepTensors``. Under ``Mode.HOST`` nothing is there yet.
        hidden: [num_tokens, hidden_size]; None of a graph, which would keep their memory for good.
        logits: [num_rows, vocab_size], in the activations' dtype, under ``Mode.HOST``; else nobody needs them, and a
            graph that kept them would take their memory for good.
    """

    token_ids: torch.Tensor
    sample_index: torch.Tensor
    hidden: torch.Tensor | None
    logits: torch.Tensor | None = None


class Step(Protocol):
    """Runs steps of any bucket, in inference mode; reads and writes nothing but device memory, and never waits."""

    def run(self, buffer: torch.Tensor, bucket: Bucket, mode: Mode) -> StepOutputs:
        """Compute the step whose integers lie at the front of the buffer."""
        ...


class StatesReader(Protocol):
    """Reads hidden states of a step, for guesses to be made from them."""

    def wanted(self) -> HiddenStates:
        """What the forward pass is to hand out."""
        ...

    def keep(self, ints: StepInts, states: HiddenStates) -> None:
        """A step has handed them out."""
        ...


class DeviceStep:
    """A model's ``Step``.

    Args:
        model: with its weights.
        kv_cache: a tensor a layer.
        state: of all slots.
        sampler: chooses tokens.
        reader: reads the hidden states of every step; None: nobody does.
        group: the ranks that must choose alike; None: those that share the model.
        between: what comes from the stage before and goes to the one behind; None: the model is whole.
        checks: rows may be guesses of the device's, and later steps ask how many were wrong.
    """

    def __init__(
        self,
        model: DecoderModel,
        kv_cache: Sequence[torch.Tensor],
        state: DeviceState,
        sampler: DeviceSampler,
        reader: StatesReader | None = None,
        group: Group | None = None,
        between: StageBuffers | None = None,
        checks: bool = True,
    ) -> None:
        self._model = model
        self._kv_cache = kv_cache
        self._state = state
        self._sampler = sampler
        self._of_ranks = sampler.of_ranks(model.group)
        self._reader = reader
        self._group = group or model.group
        self._between = between
        self._checks = checks

    def draw_mode(self, num_rows: int, among: Among) -> Mode:
        """How so many rows are drawn: ranks need not know among how many tokens where each draws from all logits."""
        if self._of_ranks is None or not self._of_ranks.serves(num_rows, among):
            return Mode.DRAW
        return next(mode for mode, each in _AMONG.items() if each is among)

    def run(self, buffer: torch.Tensor, bucket: Bucket, mode: Mode) -> StepOutputs:
        """See ``Step``."""
        with torch.inference_mode():
            return self._run(buffer, bucket, mode)

    def _run(self, buffer: torch.Tensor, bucket: Bucket, mode: Mode) -> StepOutputs:
        ints = self._state.take_in(buffer, bucket)
        tensors = self._state.tensors(ints, bucket)
        hidden = self._forward(ints, tensors.batch, bucket)
        if self._between is not None and not self._model.stage.is_last:
            self._between.leave(hidden)
            return StepOutputs(ints.row_slot.long(), tensors.sample_index, hidden)
        last = hidden if bucket.decodes else hidden[ints.sample_token.long()]
        if mode is Mode.HOST:
            logits = self._model.compute_logits(last)
            return StepOutputs(self._drawn_from(logits, ints), tensors.sample_index, hidden, logits)
        token_ids = self._greedy(last) if mode is Mode.GREEDY else self._drawn(last, ints, _AMONG[mode])
        if self._checks and bucket.at_bounds:
            ids = tensors.batch.token_ids
            checked = ids if bucket.decodes else ids[ints.sample_token.long()]
            count_wrong(self._state.num_wrong, ints, checked, token_ids)
        self._state.store(tensors.sample_index, token_ids)
        return StepOutputs(token_ids, tensors.sample_index, hidden)

    def _greedy(self, hidden: torch.Tensor) -> torch.Tensor:
        """Of ranks that share the model each names its best; all of them find the same."""
        if not self._model.group.is_alone:
            return self._model.likeliest(hidden)
        return self._group.from_first(self._sampler.greedy(self._model.compute_logits(hidden)))

    def _drawn(self, hidden: torch.Tensor, ints: StepInts, among: Among) -> torch.Tensor:
        """Ranks that share the model draw together, or each from all logits, whichever is quicker."""
        if self._of_ranks is None or not self._of_ranks.serves(len(hidden), among):
            return self._drawn_from(self._model.compute_logits(hidden), ints)
        return self._of_ranks.draw(self._model.compute_own_logits(hidden), ints, self._state, among)

    def _drawn_from(self, logits: torch.Tensor, ints: StepInts) -> torch.Tensor:
        token_ids = self._sampler.draw(logits.float(), ints, self._state)
        return self._group.from_first(token_ids)

    def _forward(self, ints: StepInts, batch: StepBatch, bucket: Bucket) -> torch.Tensor:
        reader, received = self._reader, None
        if self._between is not None:
            received = self._between.given(bucket, has_states=reader is not None)
        if reader is None:
            return self._model.forward(batch, self._kv_cache, received=received)
        states = reader.wanted()
        hidden = self._model.forward(batch, self._kv_cache, states, received)
        reader.keep(ints, states)
        return hidden
