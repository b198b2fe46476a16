"""SmolLM2's tokens in float32 are the same with guesses and without, and some are right."""

from __future__ import annotations

from pathlib import Path

import pytest

from parhelion import LLM, SamplingParams

PARAMS = [
    SamplingParams(temperature=0, max_tokens=48, ignore_eos=True),
    SamplingParams(temperature=0.7, top_p=0.9, seed=5, max_tokens=48, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=48, ignore_eos=True, repetition_penalty=1.1),
]
TEXT = "The ferry leaves at nine, the ferry returns at noon, and the ferry leaves again at one. "
PROMPT = f"<|im_start|>user\nRepeat this twice: {TEXT}<|im_end|>\n<|im_start|>assistant\n{TEXT}"


@pytest.mark.parametrize("way", ["ngram", "auto"])
def test_the_real_model_says_the_same(way: str, smollm2_path: Path) -> None:
    texts = []
    for speculate in ("off", way):
        with LLM(str(smollm2_path), dtype="float32", kv_cache_memory=128 << 20, speculate=speculate) as llm:
            outputs = llm.generate([PROMPT] * len(PARAMS), PARAMS)
            texts.append([output.outputs[0].token_ids for output in outputs])
            accepted = llm.stats().accepted_tokens_total
    assert texts[0] == texts[1]
    # Whether any guess pays is up to the machine; "ngram" makes them whether they pay or not.
    assert accepted > 0 or way == "auto"
