"""A draft model or head changes no token where ranks or stages are processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from parhelion import LLM, SamplingParams
from parhelion.config import EngineConfig
from parhelion.engine.load import load_model
from parhelion.types import Prompt
from tests.e2e.draft_models import leave_out_layers
from tests.e2e.eagle3_scratch import write_fitted_head, write_random_head
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of

LAYER_BYTES = 2 * 1 * 16 * 4 * 4
"""Of four tokens of a rank's keys and values in one layer: it has one KV head of two."""


def test_every_setting_with_a_draft_model_through_preemptions_and_chunks(
    make_llm: Callable[..., LLM], alone: list[Tokens], tiny_path: Path, tmp_path: Path
) -> None:
    draft = leave_out_layers(tiny_path, {1}, tmp_path / "draft")
    llm = make_llm(
        tp=2,
        speculate="draft",
        draft_model=str(draft),
        block_size=4,
        # Three layers of the model and two of the draft model.
        kv_cache_memory=80 * 5 * LAYER_BYTES,
        max_num_batched_tokens=32,
    )
    assert llm.info.num_blocks == 80
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    stats = llm.stats()
    assert stats.preemptions_total > 0
    assert 0 < stats.accepted_tokens_total < stats.guessed_tokens_total


@pytest.mark.parametrize("sizes", [{"tp": 2}, {"pp": 2}], ids=str)
def test_a_head_that_reads_what_ranks_have_parts_of_and_stages_hand_on(
    make_llm: Callable[..., LLM], tiny_path: Path, tmp_path: Path, sizes: dict[str, int]
) -> None:
    config = EngineConfig(model=str(tiny_path), dtype="float32", device="cpu", threads=1)
    scratch = write_random_head(load_model(config, tiny_path).model, tmp_path / "random")
    head = write_fitted_head(scratch, tmp_path / "fitted")
    # It is fitted to what follows the last ones greedily.
    texts: list[Prompt] = [{"prompt_token_ids": [first, first + 1]} for first in range(2, 7)]
    prompts = [*PROMPTS, *texts]
    params = [*PARAMS, *[SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)] * len(texts)]
    plain = make_llm().generate(prompts, params)
    llm = make_llm(**sizes, speculate="eagle3", draft_model=str(head))
    assert tokens_of(llm.generate(prompts, params)) == tokens_of(plain)
    stats = llm.stats()
    assert 20 < stats.accepted_tokens_total < stats.guessed_tokens_total
