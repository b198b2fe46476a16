"""Engines for the end-to-end tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion import LLM, RequestOutput
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of


def open_llm(model: Path, **options: Any) -> LLM:
    """An offline engine in float32."""
    merged = {"dtype": "float32", "kv_cache_memory": 8 << 20, "threads": 1, "max_num_seqs": 32, **options}
    merged["max_num_batched_tokens"] = max(merged.get("max_num_batched_tokens", 256), merged["max_num_seqs"])
    return LLM(str(model), **merged)


@pytest.fixture
def make_llm(tiny_path: Path) -> Iterator[Callable[..., LLM]]:
    """Opens offline engines in float32; at the end of the test each must be empty and sound."""
    opened: list[LLM] = []

    def make(model: Path | None = None, **options: Any) -> LLM:
        opened.append(open_llm(model or tiny_path, **options))
        return opened[-1]

    yield make
    for llm in opened:
        assert_empty(llm)
        llm.shutdown()


@pytest.fixture(scope="session")
def alone_outputs(tiny_path: Path) -> list[RequestOutput]:
    """Every request run by itself: one at a time, prompt in one piece, no prefix cache, no overlap, no guesses."""
    with open_llm(tiny_path, overlap=False, enable_prefix_caching=False) as llm:
        results = [llm.generate(prompt, params)[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
        assert_empty(llm)
    assert len({str(tokens) for tokens in tokens_of(results)}) == len(PROMPTS)
    return results


@pytest.fixture(scope="session")
def alone(alone_outputs: list[RequestOutput]) -> list[Tokens]:
    """Their tokens."""
    return tokens_of(alone_outputs)


def assert_empty(llm: LLM) -> None:
    """Nothing runs, nothing waits, and no block is referred to."""
    while llm._core.has_work:
        llm._core.step()
    llm.check_integrity()
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)
