"""``--compile``: an engine whose blocks TorchInductor made one function each gives the text of one without."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import cache_dir

from parhelion import LLM, SamplingParams

PROMPTS = ["x", "def add(a, b):\n    return", "The quick brown fox jumps over the lazy dog, again and again."]
PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


def test_a_compiled_engine_gives_the_same_text_and_compiles_nothing_while_it_serves(
    make_llm: Callable[..., LLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path))
    # So that the process keeps its own, where others of its kind have left torch's headers compiled.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache_dir())
    torch.compiler.reset()
    expected = [result.outputs[0].token_ids for result in make_llm().generate(PROMPTS, PARAMS)]
    llm = make_llm(compile=True)
    assert llm.info.compile_s > 0
    compiled = counters["stats"]["unique_graphs"]
    # The first block and the others, each for rows of one token and of more, side by side and not.
    assert compiled >= 4
    # Together and one after the other: steps of many sizes.
    together = llm.generate(PROMPTS, PARAMS)
    alone = [llm.generate(prompt, PARAMS)[0] for prompt in PROMPTS]
    assert [result.outputs[0].token_ids for result in together] == expected
    assert [result.outputs[0].token_ids for result in alone] == expected
    assert counters["stats"]["unique_graphs"] == compiled
