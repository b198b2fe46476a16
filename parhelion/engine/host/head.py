"""A draft head on the host: it guesses from hidden states that the target's steps leave behind."""

from __future__ import annotations

import numpy as np
import torch

from parhelion.engine.drafts.progress import HeadProgress
from parhelion.engine.host.batches import HostBatches
from parhelion.engine.host.sampling import HostSampler
from parhelion.engine.kv_storage import KVCacheSize, allocate_kv_cache
from parhelion.engine.step_layout import Ints, StepRows
from parhelion.models.decoder import HiddenStates
from parhelion.models.eagle3 import Eagle3Head


class HeadDraft:
    """An EAGLE-3 head as a ``HostDraft``.

    At each position it takes the target's hidden states there and the next token's id. So it stays one token behind;
    and what it computed out of its own guesses it computes again once the target's hidden states are there. Of tokens
    that were computed in steps which it did not follow it never sees anything; its guesses may be worse for it.

    Args:
        head: with its weights.
        layers: of the target, before which the hidden states are taken.
        size: of the KV cache that it shares the blocks of.
        sampler: the tokens of every slot.
        block_table: [max_num_seqs, max_blocks] the blocks of every slot.
        progress: what it has computed.
        block_size: tokens of a block.
    """

    def __init__(
        self,
        head: Eagle3Head,
        layers: tuple[int, ...],
        size: KVCacheSize,
        sampler: HostSampler,
        block_table: Ints,
        progress: HeadProgress,
        block_size: int,
    ) -> None:
        self.model = head
        self._layers = layers
        self._kv_cache = allocate_kv_cache(size, head.config.layer, block_size, head.dtype, head.device)
        self._batches = HostBatches(head.config.layer, head.dtype, sampler.tokens, block_table, block_size)
        self._progress = progress
        # By slot: the first position of the hidden states that the head has not computed yet, and these.
        self._seen: dict[int, tuple[int, torch.Tensor]] = {}
        # By slot: the feature behind the last guess.
        self._guessed: dict[int, torch.Tensor] = {}

    def wanted(self) -> HiddenStates:
        """See ``HostDraft``."""
        return HiddenStates(self._layers)

    def run(self, rows: StepRows) -> torch.Tensor:
        """See ``HostDraft``."""
        batch = self._batches.batch(rows, tokens_ahead=1)
        hidden, features = self.model.forward(batch, self._features(rows), self._kv_cache)
        sampling = np.flatnonzero(rows.samples)
        last = (np.cumsum(rows.counts) - 1)[sampling]
        for slot, token in zip(rows.slots[sampling].tolist(), last.tolist(), strict=True):
            self._guessed[slot] = features[token : token + 1]
        return hidden[torch.from_numpy(last)]

    def _features(self, rows: StepRows) -> torch.Tensor:
        """What goes with the rows' positions: made of the target's hidden states, or left by the head itself. Rows that
        have neither, as behind steps that the head did not follow, take whatever their slots were left with.
        """
        spans = list(zip(rows.slots.tolist(), rows.starts.tolist(), rows.counts.tolist(), strict=True))
        states = [self._states(*span) for span in spans]
        found = [each for each in states if each is not None]
        made = iter(self.model.features(torch.cat(found)).split([len(each) for each in found]) if found else ())
        return torch.cat(
            [self._left(slot) if own is None else next(made) for (slot, *_), own in zip(spans, states, strict=True)]
        )

    def _states(self, slot: int, start: int, count: int) -> torch.Tensor | None:
        """The target's hidden states there, if all of them have been seen."""
        first, states = self._seen.get(slot, (0, None))
        if states is None or not first <= start <= first + len(states) - count:
            return None
        return states[start - first : start - first + count]

    def _left(self, slot: int) -> torch.Tensor:
        """[1, hidden_size] the feature behind a slot's last guess; zeros if there has been none."""
        left = self._guessed.get(slot)
        size = self.model.config.layer.hidden_size
        return torch.zeros((1, size), dtype=self.model.dtype, device=self.model.device) if left is None else left

    def learn(self, rows: StepRows, kept: Ints, states: HiddenStates | None) -> None:
        """See ``HostDraft``."""
        if states is None:
            return
        taken = torch.cat(states.taken, dim=-1)
        ends = np.cumsum(rows.counts)
        spans = zip(
            rows.slots.tolist(), rows.starts.tolist(), (ends - rows.counts).tolist(), kept.tolist(), strict=True
        )
        for slot, start, at, count in spans:
            seen = taken[at : at + count]
            if self._progress.firsts[slot] < start:
                # Those before it are there as well; what the head has computed is of no use any more.
                first, before = self._seen[slot]
                seen = torch.cat((before[max(0, int(self._progress.computed[slot]) - first) :], seen))
            self._seen[slot] = start + count - len(seen), seen
