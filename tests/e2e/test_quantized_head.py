"""Engines whose output head is quantized: as many ranks as there may be, and guesses, change no text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parhelion import LLM
from tests.e2e.mixed_requests import PARAMS, PROMPTS, tokens_of
from tests.e2e.test_tensor_parallel import ODD_VOCABULARY, written


def test_ranks_quantize_their_rows_as_one_rank_does(make_llm: Callable[..., LLM], tmp_path: Path) -> None:
    """Each row has a scale of its own, so which rank holds it changes nothing; the padding behind the last is none."""
    folder = written(ODD_VOCABULARY, tmp_path)
    one, two = (make_llm(folder, lm_head_quantization="fp8", tp=tp) for tp in (1, 2))
    assert (one.info.quantization, one.info.lm_head_quantization) == ("unquantized", "fp8_per_token")
    assert {"scaled_mm=reference", "dynamic_per_token_scaled_fp8_quant=reference"} <= set(two.info.kernels)
    alone = tokens_of(one.generate(PROMPTS, PARAMS))
    assert tokens_of(two.generate(PROMPTS, PARAMS)) == alone
    assert alone != tokens_of(make_llm(folder).generate(PROMPTS, PARAMS))


def test_requests_together_and_guesses_of_a_draft_model_change_nothing(
    make_llm: Callable[..., LLM], tiny_path: Path
) -> None:
    usual = make_llm(lm_head_quantization="int8")
    alone = [tokens_of(usual.generate(prompt, params))[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    assert tokens_of(usual.generate(PROMPTS, PARAMS)) == alone
    guessed = make_llm(
        lm_head_quantization="int8", speculate="draft", draft_model=str(tiny_path), num_speculative_tokens=3
    )
    assert tokens_of(guessed.generate(PROMPTS, PARAMS)) == alone
    assert guessed.stats().acceptance_rate
