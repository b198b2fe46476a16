"""SmolLM2's tokens in float32 are the same with guesses and without, whoever makes them, and some are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from parhelion import LLM, SamplingParams
from tests.e2e.draft_models import leave_out_layers

PARAMS = [
    SamplingParams(temperature=0, max_tokens=32, ignore_eos=True),
    SamplingParams(temperature=0.7, top_p=0.9, seed=5, max_tokens=32, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=32, ignore_eos=True, repetition_penalty=1.1),
]
TEXT = "The ferry leaves at nine, the ferry returns at noon, and the ferry leaves again at one. "
PROMPT = f"<|im_start|>user\nRepeat this twice: {TEXT}<|im_end|>\n<|im_start|>assistant\n{TEXT}"
LEFT_OUT = {12, 18}
"""Layers that the draft model lacks: it agrees about most tokens, but by no means all."""


def tokens_and_acceptance(path: Path, draft: Path | None, way: str) -> tuple[list[list[int]], float]:
    options = {"dtype": "float32", "kv_cache_memory": 128 << 20, "speculate": way}
    with LLM(str(path), draft_model=None if draft is None else str(draft), **options) as llm:
        outputs = llm.generate([PROMPT] * len(PARAMS), PARAMS)
        return [output.outputs[0].token_ids for output in outputs], llm.stats().acceptance_rate or 0.0


@pytest.fixture(scope="module")
def plain(smollm2_path: Path) -> list[list[int]]:
    return tokens_and_acceptance(smollm2_path, None, "off")[0]


@pytest.mark.parametrize("way", ["ngram", "auto"])
def test_the_real_model_says_the_same(way: str, plain: list[list[int]], smollm2_path: Path) -> None:
    tokens, acceptance = tokens_and_acceptance(smollm2_path, None, way)
    assert tokens == plain
    # Whether any guess pays is up to the machine; "ngram" makes them whether they pay or not.
    assert acceptance > 0 or way == "auto"


def test_with_a_draft_model_it_says_the_same(plain: list[list[int]], smollm2_path: Path, tmp_path: Path) -> None:
    draft = leave_out_layers(smollm2_path, LEFT_OUT, tmp_path, torch.bfloat16)
    tokens, acceptance = tokens_and_acceptance(smollm2_path, draft, "draft")
    assert tokens == plain
    assert 0 < acceptance < 1
