"""Everything about choosing tokens that happens on the host: known tokens, penalties, log-probabilities."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from parhelion.distributed.group import Group
from parhelion.engine.messages import TokenLogprob
from parhelion.engine.sampler import choose, gather_logprobs, sample
from parhelion.engine.sampling_state import NO_LOGPROBS, SamplingState
from parhelion.engine.step_layout import Ints, Samples, StepRows
from parhelion.engine.step_result import PromptLogprobs
from parhelion.models.decoder import DecoderModel
from parhelion.scheduler import AWAITED, DRAFTED, KNOWN, Row

LOGPROB_ROWS = 64
"""Positions whose log-probabilities over the whole vocabulary are held at once."""


class LanguageModel(Protocol):
    """What makes logits of hidden states: a model, or a head.

    Attributes:
        group: the ranks that share it.
    """

    group: Group

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to [num_rows, vocab_size], on every rank."""
        ...

    def likeliest(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_rows, hidden_size] to the ids of the largest logits, [num_rows] int64, the same on every rank."""
        ...


class HostSampler:
    """The tokens of every slot as far as the host knows them, and what is computed from them.

    Args:
        model: for the logits of prompt positions.
        sampling: parameters by slot.
        max_num_seqs, max_model_len: sizes of the token buffer.

    Attributes:
        tokens: [max_num_seqs, max_model_len + 1] int32.
    """

    def __init__(self, model: DecoderModel, sampling: SamplingState, max_num_seqs: int, max_model_len: int) -> None:
        self.tokens = np.zeros((max_num_seqs, max_model_len + 1), np.int32)
        self._model = model
        self._sampling = sampling
        self._stays = np.zeros(max_num_seqs, np.int64)
        # Whoever notes the tokens of a step need not be on the thread that admits the next one.
        self._lock = threading.Lock()

    def admit(self, slot: int, token_ids: Ints) -> None:
        """A request takes a slot with these known tokens."""
        with self._lock:
            self.tokens[slot, : len(token_ids)] = token_ids
            self._stays[slot] += 1

    def stays(self, rows: StepRows) -> Ints:
        """Which stay in its slot each row belongs to; a later request's is another."""
        return self._stays[rows.slots]

    def catch_up(self, rows: Sequence[Row]) -> None:
        """Take in the tokens that another stage has sampled and that the rows begin with. Where they are ``AWAITED``
        still, they are sampled, or not needed.
        """
        for row in rows:
            if row.first_token not in (KNOWN, AWAITED):
                self.tokens[row.slot, row.start] = row.first_token

    def guess(self, rows: Sequence[Row], drafted: Sequence[int] = ()) -> None:
        """Take the rows' guesses for known, until the step's samples take their places.

        Args:
            rows: the step's.
            drafted: stand for guesses that are ``DRAFTED``, row after row; those are left alone if there are none.
        """
        drafts = iter(drafted)
        for row in rows:
            if row.guesses and (drafted or row.guesses[0] != DRAFTED):
                guesses = [next(drafts) if guess == DRAFTED else guess for guess in row.guesses]
                self.tokens[row.slot, row.start + 1 : row.start + 1 + len(guesses)] = guesses

    def draft(
        self, draft: LanguageModel, hidden: torch.Tensor, slots: Ints, positions: Ints, output_indices: Ints
    ) -> None:
        """Choose a guess for each row of hidden states [len(slots), hidden_size], as its slot chooses tokens, and take
        it for known. All of the target's ranks choose the same.

        Args:
            draft: whose hidden states they are.
            positions: where the guesses go.
            output_indices: among the outputs of their requests.
        """
        if not draft.group.is_alone and self._sampling.takes_likeliest(slots, output_indices).all():
            self.tokens[slots, positions] = draft.likeliest(hidden).numpy()
            return
        logits = draft.compute_logits(hidden).float()
        chosen = None
        if self._model.group.rank == 0:
            chosen = choose(logits, slots, output_indices, self.tokens, self._sampling)
        self.tokens[slots, positions] = self._from_first(chosen, len(slots))

    def note(self, samples: Samples, chosen: Ints, stays: Ints) -> None:
        """Remember the tokens that a step sampled, except those of rows whose slot has been taken since.

        What was sampled behind a wrong guess is remembered as well, and overwritten before it is read.

        Args:
            chosen: the tokens.
            stays: of the step's rows, as they were when it was handed to the device.
        """
        with self._lock:
            current = self._stays[samples.slots] == stays[samples.rows]
            self.tokens[samples.slots[current], samples.positions[current]] = chosen[current]

    def sample(self, logits: torch.Tensor, samples: Samples, stays: Ints) -> tuple[Ints, list[TokenLogprob | None]]:
        """Choose and remember a token for each row of logits [len(samples), vocab_size] float32 on the CPU.

        Args:
            stays: of the step's rows.
        """
        chosen, logprobs = sample(logits, samples.slots, samples.output_indices, self.tokens, self._sampling)
        self.note(samples, chosen, stays)
        return chosen, logprobs

    def sample_together(
        self, logits: torch.Tensor, samples: Samples, stays: Ints
    ) -> tuple[Ints, list[TokenLogprob | None]]:
        """The same with other ranks: rank 0 chooses and tells the others, who learn no log-probabilities."""
        count = len(samples.rows)
        if self._model.group.rank == 0:
            chosen, logprobs = self.sample(logits, samples, stays)
            return self._from_first(chosen, count), logprobs
        chosen = self._from_first(None, count)
        self.note(samples, chosen, stays)
        return chosen, [None] * count

    def choose(self, logits: torch.Tensor, samples: Samples, stays: Ints) -> Ints:
        """Choose and remember tokens like ``sample``, alone or with other ranks, without log-probabilities."""
        chosen = None
        if self._model.group.rank == 0:
            chosen = choose(logits, samples.slots, samples.output_indices, self.tokens, self._sampling)
        chosen = self._from_first(chosen, len(samples.rows))
        self.note(samples, chosen, stays)
        return chosen

    def logprobs(self, logits: torch.Tensor, samples: Samples, chosen: Ints) -> list[TokenLogprob | None]:
        """Log-probabilities of chosen tokens where they are wanted; other ranks than rank 0 learn none.

        Args:
            logits: [num_rows, vocab_size] of the step, on any device; no more of them is copied than is asked for.
            chosen: [len(samples)] the tokens.
        """
        found: list[TokenLogprob | None] = [None] * len(chosen)
        if self._model.group.rank != 0:
            return found
        told = np.flatnonzero(self._sampling.wants_logprobs(samples.slots))
        for start in range(0, len(told), LOGPROB_ROWS):
            part = told[start : start + LOGPROB_ROWS]
            rows = torch.from_numpy(samples.rows[part]).to(logits.device)
            wanted = self._sampling.logprobs[samples.slots[part]]
            distributions = logits[rows].float().log_softmax(-1)
            for index, each in zip(part, gather_logprobs(distributions, chosen[part], wanted), strict=True):
                found[index] = each
        return found

    def _from_first(self, chosen: Ints | None, count: int) -> Ints:
        """The ``count`` tokens that rank 0 has chosen, on all ranks."""
        group, device = self._model.group, self._model.device
        if group.is_alone and chosen is not None:
            return chosen
        values = torch.empty(count, dtype=torch.int64) if chosen is None else torch.from_numpy(chosen)
        told: Ints = group.from_first(values.to(device)).cpu().numpy()
        return told

    def prompt_logprobs(
        self, plan_rows: Sequence[Row], first_tokens: Ints, hidden: torch.Tensor | None
    ) -> list[PromptLogprobs]:
        """Log-probabilities of the prompt tokens that a step's rows predict, for the requests that want them.

        Args:
            first_tokens: [num_rows] each row's first token among the step's.
            hidden: [num_tokens, hidden_size] of the step, on the model's device; None if no request wants any.
        """
        results = []
        for row, first_token in zip(plan_rows, first_tokens.tolist(), strict=True):
            wanted = int(self._sampling.prompt_logprobs[row.slot])
            # The hidden state of a position predicts the next token: the prompt's last one predicts an output.
            stop = min(row.start + row.num_tokens, int(self._sampling.num_prompt_tokens[row.slot]) - 1)
            if wanted == NO_LOGPROBS or stop <= row.start:
                continue
            assert hidden is not None, "a request wants them"
            logprobs: list[TokenLogprob] = []
            for start in range(row.start, stop, LOGPROB_ROWS):
                end = min(stop, start + LOGPROB_ROWS)
                first = first_token + start - row.start
                distribution = self._model.compute_logits(hidden[first : first + end - start]).float().log_softmax(-1)
                predicted = self.tokens[row.slot, start + 1 : end + 1].astype(np.int64)
                logprobs += gather_logprobs(distribution, predicted, np.full(end - start, wanted))
            results.append(PromptLogprobs(row.request_id, row.start + 1, logprobs))
        return results
