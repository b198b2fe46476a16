"""How each running request wants its tokens chosen, as arrays over slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parhelion.distributed.sampling import MOST_CANDIDATES, Among
from parhelion.engine.messages import AddRequest

NO_LOGPROBS = -1

DRAWS, CHOOSES_ON_HOST, TELLS_PROMPT = 1, 2, 4
"""What a request may ask for beyond its likeliest tokens, in bits: others; what may take the host; log-probabilities of
its prompt.
"""

MIN_TEMPERATURE = 1e-6
"""The least that a request draws with: the greedy choice already, and logits divided by it do not overflow."""

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenValues:
    """Entries (row, token id, value) of a sparse [rows, vocab] matrix."""

    rows: Ints
    token_ids: Ints
    values: Floats


class SamplingState:
    """Sampling parameters by slot; a slot's values are set when a request takes it.

    Args:
        max_num_seqs: number of slots.

    Attributes: each a [max_num_seqs] array under the parameter's own name. ``logprobs`` and ``prompt_logprobs`` hold
        ``NO_LOGPROBS`` where none are wanted.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.temperature = np.zeros(max_num_seqs, np.float32)
        self.top_k = np.zeros(max_num_seqs, np.int64)
        self.top_p = np.ones(max_num_seqs, np.float32)
        self.min_p = np.zeros(max_num_seqs, np.float32)
        self.repetition_penalty = np.ones(max_num_seqs, np.float32)
        self.presence_penalty = np.zeros(max_num_seqs, np.float32)
        self.frequency_penalty = np.zeros(max_num_seqs, np.float32)
        self.seed = np.zeros(max_num_seqs, np.uint64)
        self.min_tokens = np.zeros(max_num_seqs, np.int64)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        self.logprobs = np.full(max_num_seqs, NO_LOGPROBS, np.int64)
        self.prompt_logprobs = np.full(max_num_seqs, NO_LOGPROBS, np.int64)
        self._bias: dict[int, tuple[Ints, Floats]] = {}
        self._stop_ids: dict[int, Ints] = {}
        # Slots that have an entry in one of these.
        self._adds = np.zeros(max_num_seqs, np.bool_)
        self._asks = np.zeros(max_num_seqs, np.uint8)
        # Slots that ask for anything.
        self._asking: set[int] = set()

    def set(self, slot: int, request: AddRequest) -> None:
        """Take a request's parameters into its slot."""
        params = request.params
        self.temperature[slot] = 0.0 if params.greedy else max(params.temperature, MIN_TEMPERATURE)
        self.top_k[slot] = max(params.top_k, 0)
        self.top_p[slot] = params.top_p
        self.min_p[slot] = params.min_p
        self.repetition_penalty[slot] = params.repetition_penalty
        self.presence_penalty[slot] = params.presence_penalty
        self.frequency_penalty[slot] = params.frequency_penalty
        self.seed[slot] = request.seed % (1 << 64)
        self.min_tokens[slot] = params.min_tokens
        self.num_prompt_tokens[slot] = len(request.prompt_token_ids)
        self.logprobs[slot] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        self.prompt_logprobs[slot] = NO_LOGPROBS if params.prompt_logprobs is None else params.prompt_logprobs
        self._bias.pop(slot, None)
        if params.logit_bias:
            ids = np.fromiter(params.logit_bias.keys(), np.int64)
            self._bias[slot] = ids, np.fromiter(params.logit_bias.values(), np.float32)
        self._stop_ids.pop(slot, None)
        if params.min_tokens and request.stop_token_ids:
            self._stop_ids[slot] = np.array(request.stop_token_ids, np.int64)
        self._adds[slot] = slot in self._bias or slot in self._stop_ids
        on_host = self._adds[slot] or self.needs_host(np.array([slot]), np.zeros(1, np.int64)).any()
        self._asks[slot] = (
            DRAWS * (self.temperature[slot] != 0)
            | CHOOSES_ON_HOST * on_host
            | TELLS_PROMPT * (self.prompt_logprobs[slot] != NO_LOGPROBS)
        )
        (self._asking.add if self._asks[slot] else self._asking.discard)(slot)

    def asked(self, slots: Ints) -> int:
        """Which of ``DRAWS``, ``CHOOSES_ON_HOST`` and ``TELLS_PROMPT`` any of the slots may ever ask for."""
        return int(np.bitwise_or.reduce(self._asks[slots])) if self._asking else 0

    def wants_prompt(self, slots: Ints, starts: Ints) -> npt.NDArray[np.bool_]:
        """Which of the rows that begin at these positions predict prompt tokens whose log-probabilities are wanted."""
        wants: npt.NDArray[np.bool_] = self.prompt_logprobs[slots] != NO_LOGPROBS
        return wants & (starts < self.num_prompt_tokens[slots] - 1)

    def wants_logprobs(self, slots: Ints) -> npt.NDArray[np.bool_]:
        """Which of the rows ask for log-probabilities of what they sample."""
        wants: npt.NDArray[np.bool_] = self.logprobs[slots] != NO_LOGPROBS
        return wants

    def changes_logits(self, slots: Ints, output_indices: Ints) -> npt.NDArray[np.bool_]:
        """Which of the rows choose by more than temperature, top-k, top-p, min-p and a seed."""
        changes: npt.NDArray[np.bool_] = (
            (self.repetition_penalty[slots] != 1)
            | (self.presence_penalty[slots] != 0)
            | (self.frequency_penalty[slots] != 0)
        )
        if (added := self.added_logits(slots, output_indices)) is not None:
            changes[added.rows] = True
        return changes

    def needs_host(self, slots: Ints, output_indices: Ints) -> npt.NDArray[np.bool_]:
        """Which of the rows need their logits to be looked at, for either of these."""
        return self.wants_logprobs(slots) | self.changes_logits(slots, output_indices)

    def draws_among(self, slots: Ints) -> Among:
        """Among how many tokens the rows draw, of which at least one does."""
        drawn = slots[self.temperature[slots] != 0]
        top_k = self.top_k[drawn]
        if ((top_k > 0) & (top_k <= MOST_CANDIDATES)).all():
            return Among.FEW
        return Among.ALL if ((top_k == 0) & (self.top_p[drawn] >= 1)).all() else Among.ANY

    def takes_likeliest(self, slots: Ints, output_indices: Ints) -> npt.NDArray[np.bool_]:
        """Which of the rows ask for nothing but the likeliest token."""
        is_greedy: npt.NDArray[np.bool_] = self.temperature[slots] == 0
        return is_greedy & ~self.needs_host(slots, output_indices)

    def added_logits(self, slots: Ints, output_indices: Ints) -> TokenValues | None:
        """What to add to the logits of the rows that hold ``slots``: biases, and -inf for stop ids that come too early.

        Only requests that ask for either cost anything.
        """
        rows, ids, values = [], [], []
        for row in np.flatnonzero(self._adds[slots]).tolist():
            slot, output_index = int(slots[row]), int(output_indices[row])
            if (bias := self._bias.get(slot)) is not None:
                rows.append(np.full(len(bias[0]), row, np.int64))
                ids.append(bias[0])
                values.append(bias[1])
            stops = self._stop_ids.get(slot)
            if stops is not None and output_index < self.min_tokens[slot]:
                rows.append(np.full(len(stops), row, np.int64))
                ids.append(stops)
                values.append(np.full(len(stops), -np.inf, np.float32))
        if not rows:
            return None
        return TokenValues(np.concatenate(rows), np.concatenate(ids), np.concatenate(values))
