"""Requests as the engine gets them, and the sampler called the way in which the worker calls it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch

from parhelion.engine.messages import AddRequest, EngineInfo, TokenLogprob
from parhelion.engine.sampler import sample
from parhelion.engine.sampling_state import SamplingState
from parhelion.types import SamplingParams


def add_request(
    request_id: str = "r/0",
    prompt: Sequence[int] = (5, 6, 7),
    *,
    seed: int = 0,
    stop_token_ids: Sequence[int] = (),
    max_tokens: int = 16,
    priority: int = 0,
    **params: Any,
) -> AddRequest:
    """A request with the given sampling parameters."""
    return AddRequest(
        request_id, list(prompt), SamplingParams(**params), seed, list(stop_token_ids), max_tokens, priority, 0.0
    )


def sample_rows(
    logits: torch.Tensor,
    requests: Sequence[AddRequest],
    outputs: Sequence[Sequence[int]] | None = None,
    output_indices: Sequence[int] | None = None,
) -> tuple[list[int], list[TokenLogprob | None], torch.Tensor]:
    """Sample a token for each request.

    Slots are given in reverse, so that rows and slots never agree by chance; what is no known token of a slot is
    filled with token 0, as if an earlier request had left it there.

    Args:
        logits: [num_rows, vocab_size]; left as they are.
        requests: one a row.
        outputs: tokens that each has generated so far; none if left out.
        output_indices: in place of the outputs' lengths.

    Returns:
        Tokens, log-probabilities, and the logits after penalties and biases.
    """
    count = len(requests)
    outputs = outputs or [()] * count
    slots = np.arange(count, dtype=np.int64)[::-1].copy()
    state = SamplingState(count)
    known = [[*request.prompt_token_ids, *output] for request, output in zip(requests, outputs, strict=True)]
    buffer = np.zeros((count, max(map(len, known)) + 4), np.int32)
    for slot, request, tokens in zip(slots.tolist(), requests, known, strict=True):
        state.set(slot, request)
        buffer[slot, : len(tokens)] = tokens
    indices = np.array([len(output) for output in outputs] if output_indices is None else output_indices, np.int64)
    adjusted = logits.clone()
    chosen, logprobs = sample(adjusted, slots, indices, buffer, state)
    return chosen.tolist(), logprobs, adjusted


def random_logits(rows: int, vocab_size: int, scale: float = 2.0, seed: int = 0) -> torch.Tensor:
    """[rows, vocab_size] normal numbers."""
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * scale


def engine_info(*, vocab_size: int = 258, eos_token_ids: Sequence[int] = (1,), max_model_len: int = 32) -> EngineInfo:
    """What a small engine says of itself; what no test asks for is empty or zero."""
    values: dict[str, Any] = {
        field.name: field.type() for field in msgspec.structs.fields(EngineInfo) if field.type in (str, int, float)
    }
    values |= {"kernels": [], "block_kernels": {}, "kernel_notes": [], "pack": "", "phases": []}
    values |= {"vocab_size": vocab_size, "eos_token_ids": list(eos_token_ids), "max_model_len": max_model_len}
    return EngineInfo(**values)
