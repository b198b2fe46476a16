"""A model in stages says what it says in one piece, with a step for each stage under way; one that ends is named."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from parhelion import LLM, AsyncEngine, SamplingParams
from parhelion.config import EngineConfig
from parhelion.engine.drafts import choice as draft_choice
from parhelion.errors import EngineDeadError
from tests.e2e.mixed_requests import PARAMS, PREFIX, PROMPTS, tokens_of
from tests.e2e.test_speculation import Prophet
from tests.e2e.test_tensor_parallel import (
    LONG,
    ODD_VOCABULARY,
    config_of,
    logprobs_of,
    ranks_of,
    written,
)
from tests.e2e.tiny_models import TinyModel
from tests.processes import wait_for_end

FIVE_LAYERS = TinyModel("qwen3-five-layers", "Qwen3", {"num_hidden_layers": 5, "head_dim": 16})


def test_every_setting_and_the_prefix_cache_with_two_steps_under_way(
    make_llm: Callable[..., LLM], tiny_path: Path
) -> None:
    prompts = [*PROMPTS, "The end"]
    params = [*PARAMS, SamplingParams(temperature=0, max_tokens=8, logprobs=3, prompt_logprobs=2)]
    one, two = (make_llm(tiny_path, block_size=8, pp=pp) for pp in (1, 2))
    assert two.info.pp == 2
    alone = one.generate(prompts, params)
    under_way = []
    step = two._core.step

    def observed() -> list[object]:
        tokens = step()
        under_way.append(len(two._core._in_flight) + 1)  # type: ignore[union-attr]
        return tokens  # type: ignore[return-value]

    two._core.step = observed  # type: ignore[method-assign,assignment]
    for _ in range(2):
        together = two.generate(prompts, params)
        assert tokens_of(together) == tokens_of(alone)
    assert max(under_way) == 2
    assert under_way.count(2) > len(under_way) // 2
    assert together[3].num_cached_tokens >= len(PREFIX) // 8 * 8
    for ours, theirs in zip(logprobs_of(together[-1]), logprobs_of(alone[-1]), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[token].logprob == pytest.approx(theirs[token].logprob, abs=1e-4) for token in ours)


def test_preemption_chunks_and_guesses_change_nothing_in_stages_of_unequal_size(
    make_llm: Callable[..., LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(FIVE_LAYERS, tmp_path)
    alone = make_llm(folder, overlap=False).generate(PROMPTS, PARAMS)
    texts = [[*result.prompt_token_ids, *output.token_ids] for result in alone for output in result.outputs]
    monkeypatch.setattr(Prophet, "texts", texts)
    monkeypatch.setattr(draft_choice, "NgramProposer", Prophet)
    # The stage with the most layers has two of the five.
    block_bytes = 2 * 2 * 2 * 16 * 4 * 4
    llm = make_llm(
        folder,
        pp=3,
        block_size=4,
        kv_cache_memory=80 * block_bytes,
        enable_prefix_caching=False,
        speculate="ngram",
        max_num_batched_tokens=16,
        max_num_seqs=6,
    )
    assert llm.info.num_blocks == 80
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == tokens_of(alone)
    stats = llm.stats()
    assert stats.preemptions_total > 0
    assert 0 < stats.accepted_tokens_total < stats.guessed_tokens_total


def test_two_ranks_in_each_of_two_stages(make_llm: Callable[..., LLM], tmp_path: Path) -> None:
    folder = written(ODD_VOCABULARY, tmp_path)
    one, four = (tokens_of(make_llm(folder, **sizes).generate(PROMPTS, PARAMS)) for sizes in ({}, {"tp": 2, "pp": 2}))
    assert four == one


def strike_in_a_step(config: EngineConfig, strike: Callable[[psutil.Process], None], said: str, end_s: float) -> None:
    """Let something happen to the first of the other ranks in the middle of an answer: the engine ends with an error
    that begins so behind the rank's name, and all other ranks end in time.
    """

    async def run() -> None:
        engine = await AsyncEngine.from_config(config, in_process=True)
        ranks = sorted(ranks_of(psutil.Process()), key=lambda rank: rank.pid)
        assert len(ranks) == config.num_ranks - 1
        stream = engine.generate("Once upon a time", LONG)
        await anext(stream)
        strike(ranks[0])
        stage = 1 // config.tp
        name = rf"rank 1 \(stage {stage}\) on {os.uname().nodename} \(process {ranks[0].pid}\)"
        with pytest.raises(EngineDeadError, match=f"{name} {said}"):
            async for _ in stream:
                pass
        await asyncio.to_thread(wait_for_end, ranks, end_s)
        await engine.shutdown()

    asyncio.run(run())


def test_a_stage_killed_in_a_step_ends_the_engine_with_an_error_that_names_it(patient_path: Path) -> None:
    """The last of three stages then fails as well, and is not blamed."""
    config = replace(config_of(patient_path), tp=1, pp=3)
    strike_in_a_step(config, psutil.Process.kill, "was killed by SIGKILL", 30)


def test_a_stage_that_is_stopped_is_ended_and_named_though_nobody_waits_for_its_steps(tiny_path: Path) -> None:
    """The first of two stages has two ranks, and one of them waits for the other."""
    config = replace(config_of(tiny_path), pp=2, heartbeat_timeout_s=3)
    strike_in_a_step(config, psutil.Process.suspend, "is cut off or hangs: ", 8)
