"""In float32 a request's tokens do not depend on what else the engine does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from parhelion import LLM, AsyncEngine, EngineConfig, SamplingParams
from parhelion.types import Prompt
from tests.e2e.mixed_requests import PARAMS, PREFIX, PROMPTS, Tokens, tokens_of


def test_prompts_and_params_cover_each_other() -> None:
    assert len(PROMPTS) == len(PARAMS)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="one batch"),
        pytest.param({"overlap": False}, id="without overlap"),
        pytest.param({"max_num_batched_tokens": 7, "max_num_seqs": 6}, id="prompts in chunks of 7 tokens"),
        pytest.param({"enable_prefix_caching": False}, id="without prefix cache"),
        pytest.param({"block_size": 1}, id="blocks of one token"),
        pytest.param({"max_num_seqs": 2}, id="two at a time"),
        pytest.param({"scheduling_policy": "priority"}, id="priority policy"),
        pytest.param({"speculate": "ngram"}, id="guesses"),
        pytest.param({"speculate": "auto"}, id="guesses that pay"),
        pytest.param(
            {"speculate": "ngram", "block_size": 1, "num_speculative_tokens": 9}, id="many guesses, small blocks"
        ),
        pytest.param(
            {"speculate": "ngram", "max_num_batched_tokens": 13, "max_num_seqs": 6},
            id="guesses beside chunks of prompts",
        ),
    ],
)
def test_a_batch_changes_nothing(options: dict[str, int], alone: list[Tokens], make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(**options)
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone


def test_the_prefix_cache_changes_nothing_and_is_used(alone: list[Tokens], make_llm: Callable[..., LLM]) -> None:
    llm = make_llm(block_size=8)
    for _ in range(3):
        results = llm.generate(PROMPTS, PARAMS)
        assert tokens_of(results) == alone
    assert results[3].num_cached_tokens >= len(PREFIX) // 8 * 8
    assert llm.stats().prefix_cache_hit_tokens_total > 0


def test_preemption_changes_nothing(alone: list[Tokens], make_llm: Callable[..., LLM]) -> None:
    block_bytes = 2 * 3 * 2 * 16 * 4 * 4
    llm = make_llm(block_size=4, kv_cache_memory=80 * block_bytes, enable_prefix_caching=False)
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    assert llm.stats().preemptions_total > 0


def test_streaming_changes_nothing(alone: list[Tokens], make_llm: Callable[..., LLM]) -> None:
    llm = make_llm()
    for prompt, params, expected in zip(PROMPTS, PARAMS, alone, strict=True):
        whole = llm.generate(prompt, params)[0]
        texts = [""] * params.n
        for partial in llm.stream(prompt, params):
            for output in partial.outputs:
                assert output.text.startswith(texts[output.index])
                texts[output.index] = output.text
            last = partial
        assert last.finished
        assert tokens_of([last]) == [expected]
        assert texts == [output.text for output in whole.outputs]


@pytest.mark.parametrize("in_process", [True, False], ids=["in a thread", "in a process"])
def test_processes_change_nothing(in_process: bool, alone: list[Tokens], tiny_path: Path) -> None:
    config = EngineConfig(model=str(tiny_path), dtype="float32", kv_cache_memory=8 << 20, threads=1, max_num_seqs=32)

    async def run() -> list[Tokens]:
        engine = await AsyncEngine.from_config(config, in_process=in_process)

        async def one(prompt: Prompt, params: SamplingParams) -> Tokens:
            async for partial in engine.generate(prompt, params):
                last = partial
            return [output.token_ids for output in last.outputs]

        try:
            results = await asyncio.gather(*(one(*pair) for pair in zip(PROMPTS, PARAMS, strict=True)))
            stats = await engine.stats()
            assert (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0)
        finally:
            await engine.shutdown()
        return list(results)

    assert asyncio.run(run()) == alone
