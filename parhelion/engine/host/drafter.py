"""Guesses by a draft model on the host, made at the beginning of the step that checks them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from parhelion.engine.drafts.progress import DraftProgress, accepted_of, num_guesses
from parhelion.engine.host.batches import HostBatches
from parhelion.engine.host.sampling import HostSampler, LanguageModel
from parhelion.engine.kv_storage import KVCacheSize, allocate_kv_cache
from parhelion.engine.step_layout import Ints, StepRows
from parhelion.engine.step_result import Drafted
from parhelion.models.decoder import DecoderModel, HiddenStates


class HostDraft(Protocol):
    """A model that guesses.

    Attributes:
        model: makes the logits of what ``run`` returns.
    """

    @property
    def model(self) -> LanguageModel: ...

    def wanted(self) -> HiddenStates | None:
        """What the target's forward pass is to hand out."""
        ...

    def run(self, rows: StepRows) -> torch.Tensor:
        """Compute rows, writing their keys and values.

        Returns:
            [num_sampling_rows, hidden_size] at the last tokens of the rows that sample.
        """
        ...

    def learn(self, rows: StepRows, kept: Ints, states: HiddenStates | None) -> None:
        """A step is done.

        Args:
            rows: the step's.
            kept: [num_rows] how many of each row's tokens are known now: all but wrong guesses.
            states: what was wanted; None if the draft did not take part.
        """
        ...


class ModelDraft:
    """A whole model with the target's vocabulary (speculative decoding: Leviathan et al., 2023).

    Args:
        model: with its weights.
        size: of the KV cache that it shares the blocks of.
        sampler: the tokens of every slot.
        block_table: [max_num_seqs, max_blocks] the blocks of every slot.
        block_size: tokens of a block.
    """

    def __init__(
        self, model: DecoderModel, size: KVCacheSize, sampler: HostSampler, block_table: Ints, block_size: int
    ) -> None:
        self.model = model
        self._kv_cache = allocate_kv_cache(size, model.config, block_size, model.dtype, model.device)
        self._batches = HostBatches(model.config, model.dtype, sampler.tokens, block_table, block_size)

    def wanted(self) -> None:
        """See ``HostDraft``."""
        return

    def learn(self, rows: StepRows, kept: Ints, states: HiddenStates | None) -> None:
        """See ``HostDraft``."""

    def run(self, rows: StepRows) -> torch.Tensor:
        """See ``HostDraft``."""
        hidden = self.model.forward(self._batches.batch(rows), self._kv_cache)
        last = np.cumsum(rows.counts)[rows.samples != 0] - 1
        return hidden[torch.from_numpy(last)]


class HostDrafter:
    """Lets a draft model follow the requests and guess what they say next.

    A guess is drawn as its request draws, by the random number that belongs to its place. So a draft model that agrees
    with the target about the distribution agrees about the token as well. All of several ranks run the same passes and
    are told the same guesses.

    Args:
        draft: guesses.
        progress: what it has computed.
        sampler: the tokens of every slot, and how they are chosen.
    """

    def __init__(self, draft: HostDraft, progress: DraftProgress, sampler: HostSampler) -> None:
        self.progress = progress
        self._draft = draft
        self._sampler = sampler

    def draft(self, rows: StepRows) -> Drafted:
        """Catch up on a step's rows, and guess all that they sample but the last; the guesses are taken for known until
        the step's samples take their places.
        """
        started = time.perf_counter()
        num_tokens = 0
        for each in self.progress.passes(rows):
            num_tokens += int(each.counts.sum())
            hidden = self._draft.run(each)
            sampling = np.flatnonzero(each.samples)
            if len(sampling):
                ends = each.starts[sampling] + each.counts[sampling] + self.progress.behind
                self._sampler.draft(
                    self._draft.model, hidden, each.slots[sampling], ends, each.output_indices[sampling]
                )
        counts = num_guesses(rows).tolist()
        ids = [
            token
            for slot, start, count in zip(rows.slots.tolist(), rows.starts.tolist(), counts, strict=True)
            for token in self._sampler.tokens[slot, start + 1 : start + 1 + count].tolist()
        ]
        return Drafted(ids, num_tokens, time.perf_counter() - started)

    def wanted(self) -> HiddenStates | None:
        """What the target's forward pass is to hand out for the draft."""
        return self._draft.wanted()

    def settle(self, rows: StepRows, guessed: Sequence[int], chosen: Ints, states: HiddenStates | None) -> Ints:
        """A step in which the draft took part is done.

        Args:
            rows: the step's.
            guessed: what was guessed for them, row after row.
            chosen: what they sampled, row after row.
            states: what was wanted of the forward pass.

        Returns:
            See ``accepted_of``.
        """
        accepted = accepted_of(rows, guessed, chosen)
        self.progress.follow(rows)
        self.progress.settle(rows, accepted)
        self._draft.learn(rows, rows.counts - num_guesses(rows) + accepted, states)
        return accepted
