"""Choosing the next token of every row of a step at once.

Random numbers are a hash of (seed, index of the output token): a request draws the same numbers alone or in any batch,
before or after preemption.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from parhelion.engine.messages import TokenLogprob
from parhelion.engine.sampling_state import NO_LOGPROBS, SamplingState

Ints = npt.NDArray[np.int64]

CANDIDATES = 1024
"""Likeliest tokens looked at first by top-p and min-p; rows that need more are sorted whole."""

ROWS_AT_ONCE = 32
"""Rows whose float64 distributions over the whole vocabulary are held at once."""


def sample(
    logits: torch.Tensor, slots: Ints, output_indices: Ints, token_buffer: npt.NDArray[np.int32], state: SamplingState
) -> tuple[Ints, list[TokenLogprob | None]]:
    """Choose a token for each row.

    Args:
        logits: [num_rows, vocab_size] float32; overwritten.
        slots: [num_rows] whose parameters each row uses.
        output_indices: [num_rows] index of the token to choose among its request's outputs.
        token_buffer: [max_num_seqs, max_model_len + 1] known tokens by slot, for the penalties.
        state: parameters by slot.

    Returns:
        Token ids [num_rows], and for each row its log-probabilities if its request wants them.
    """
    with_logprobs = np.flatnonzero(state.logprobs[slots] != NO_LOGPROBS)
    logprobs = logits[torch.from_numpy(with_logprobs)].log_softmax(-1) if len(with_logprobs) else None
    chosen = choose(logits, slots, output_indices, token_buffer, state)
    results: list[TokenLogprob | None] = [None] * len(slots)
    if logprobs is not None:
        wanted = state.logprobs[slots[with_logprobs]]
        for row, item in zip(
            with_logprobs.tolist(), gather_logprobs(logprobs, chosen[with_logprobs], wanted), strict=True
        ):
            results[row] = item
    return chosen, results


def choose(
    logits: torch.Tensor, slots: Ints, output_indices: Ints, token_buffer: npt.NDArray[np.int32], state: SamplingState
) -> Ints:
    """The token ids [num_rows] that ``sample`` chooses, without log-probabilities."""
    _apply_penalties(logits, slots, output_indices, token_buffer, state)
    if (added := state.added_logits(slots, output_indices)) is not None:
        where = (torch.from_numpy(added.rows), torch.from_numpy(added.token_ids))
        logits.index_put_(where, torch.from_numpy(added.values), accumulate=True)
    temperature = state.temperature[slots]
    chosen = np.empty(len(slots), np.int64)
    greedy = np.flatnonzero(temperature == 0)
    if len(greedy):
        rows = logits if len(greedy) == len(slots) else logits[torch.from_numpy(greedy)]
        chosen[greedy] = rows.argmax(-1).numpy()
    drawn = np.flatnonzero(temperature != 0)
    if len(drawn):
        chosen[drawn] = _draw(logits, drawn, slots[drawn], output_indices[drawn], state)
    return chosen


def gather_logprobs(logprobs: torch.Tensor, token_ids: Ints, num_top: Ints) -> list[TokenLogprob]:
    """The log-probability and rank of given tokens, and the likeliest alternatives.

    Args:
        logprobs: [num_rows, vocab_size] on any device; no more of them is copied than is asked for.
        token_ids: [num_rows].
        num_top: [num_rows] alternatives wanted.
    """
    chosen = logprobs.gather(1, torch.from_numpy(token_ids).to(logprobs.device)[:, None])
    ranks = ((logprobs > chosen).sum(1) + 1).tolist()
    top = logprobs.topk(min(int(num_top.max()), logprobs.shape[1]), dim=1)
    ids, values = top.indices.tolist(), top.values.tolist()
    return [
        TokenLogprob(token, value, ranks[row], ids[row][:count], values[row][:count])
        for row, (token, value, count) in enumerate(
            zip(token_ids.tolist(), chosen[:, 0].tolist(), num_top.tolist(), strict=True)
        )
    ]


def uniform(seeds: npt.NDArray[np.uint64], counters: Ints) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) that depend on nothing but (seed, counter).

    Source: the output function of SplitMix64 (Steele, Lea and Flood, 2014), of the seed and then of the counter.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(seeds) ^ counters.astype(np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _apply_penalties(
    logits: torch.Tensor, slots: Ints, output_indices: Ints, token_buffer: npt.NDArray[np.int32], state: SamplingState
) -> None:
    repetition, presence, frequency = (
        values[slots] for values in (state.repetition_penalty, state.presence_penalty, state.frequency_penalty)
    )
    penalized = np.flatnonzero((repetition != 1) | (presence != 0) | (frequency != 0))
    if not len(penalized):
        return
    rows = torch.from_numpy(penalized)
    prompt_lens = state.num_prompt_tokens[slots[penalized]]
    lens = prompt_lens + output_indices[penalized]
    tokens = token_buffer[slots[penalized], : int(lens.max())].astype(np.int64)
    positions = np.arange(tokens.shape[1])
    known = torch.from_numpy((positions < lens[:, None]).astype(np.float32))
    is_output = known * torch.from_numpy(positions >= prompt_lens[:, None])
    token_ids = torch.from_numpy(tokens)
    picked = logits[rows]
    seen = torch.zeros_like(picked).scatter_add_(1, token_ids, known) > 0
    counts = torch.zeros_like(picked).scatter_add_(1, token_ids, is_output)
    factor = torch.from_numpy(repetition[penalized])[:, None]
    picked = torch.where(seen, torch.where(picked > 0, picked / factor, picked * factor), picked)
    picked -= counts * torch.from_numpy(frequency[penalized])[:, None]
    picked -= (counts > 0) * torch.from_numpy(presence[penalized])[:, None]
    logits[rows] = picked


def _draw(logits: torch.Tensor, rows: Ints, slots: Ints, output_indices: Ints, state: SamplingState) -> Ints:
    """Draw a token for each of the rows by inverting the distribution function."""
    scaled = logits[torch.from_numpy(rows)] / torch.from_numpy(state.temperature[slots])[:, None]
    numbers = torch.from_numpy(uniform(state.seed[slots], output_indices))
    vocab_size = scaled.shape[1]
    top_k = state.top_k[slots]
    top_k = np.where((top_k == 0) | (top_k > vocab_size), vocab_size, top_k)
    filtered = (top_k < vocab_size) | (state.top_p[slots] < 1) | (state.min_p[slots] > 0)
    chosen = np.empty(len(rows), np.int64)
    for part in _chunks(np.flatnonzero(~filtered)):
        where = torch.from_numpy(part)
        probabilities = scaled[where].double().softmax(-1)
        chosen[part] = _invert(probabilities, numbers[where]).numpy()
    todo = np.flatnonzero(filtered)
    width = min(vocab_size, CANDIDATES)
    while len(todo):
        unresolved = []
        for part in _chunks(todo):
            where = torch.from_numpy(part)
            limits = tuple(
                torch.from_numpy(values[part])[:, None]
                for values in (top_k, state.top_p[slots].astype(np.float64), state.min_p[slots].astype(np.float64))
            )
            tokens, resolved = _draw_filtered(scaled[where], numbers[where], width, limits)
            chosen[part] = tokens.numpy()
            unresolved.append(part[~resolved.numpy()])
        todo, width = np.concatenate(unresolved), vocab_size
    return chosen


def _draw_filtered(
    scaled: torch.Tensor, numbers: torch.Tensor, width: int, limits: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw among the ``width`` likeliest tokens that pass top-k, top-p (after top-k) and min-p.

    Returns:
        Token ids [num_rows], and whether the candidates sufficed to decide [num_rows].
    """
    top_k, top_p, min_p = limits
    total = scaled.double().logsumexp(-1, keepdim=True)
    top = scaled.topk(width, dim=-1)
    within_k = torch.arange(width) < top_k
    probabilities = (top.values.double() - total).exp() * within_k
    # top-p counts shares of what top-k left; with more left than there are candidates, that is everything.
    whole = torch.where(top_k <= width, probabilities.sum(-1, keepdim=True), 1.0)
    before = probabilities.cumsum(-1) - probabilities
    keep = within_k & (before < top_p * whole) & (probabilities >= min_p * probabilities[:, :1])
    vocab_size = scaled.shape[1]
    resolved = (top_k[:, 0] <= width) | (~keep[:, -1] & (top_k[:, 0] == vocab_size)) | (width == vocab_size)
    drawn = _invert(probabilities * keep, numbers)
    return top.indices.gather(1, drawn[:, None])[:, 0], resolved


def _invert(weights: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """Index at which the running share of weights [num_rows, width] first exceeds numbers [num_rows] in [0, 1)."""
    running = weights.cumsum(-1)
    target = numbers[:, None] * running[:, -1:]
    index = torch.searchsorted(running, target, right=True)[:, 0]
    # Rounding may push the target to the very end: stay on a token of positive weight.
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).int().argmax(-1)
    return torch.minimum(index, last)


def _chunks(rows: Ints) -> list[Ints]:
    return [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
