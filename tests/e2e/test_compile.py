"""``--compile``: an engine whose blocks TorchInductor made one function each gives the text of one without, on one rank
and on several.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import cache_dir

from parhelion import LLM, SamplingParams
from tests.e2e.tiny_models import TinyModel, write_byte_tokenizer

PROMPTS = ["x", "def add(a, b):\n    return", "The quick brown fox jumps over the lazy dog, again and again."]
PARAMS = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(autouse=True)
def _own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path))
    # So that the process keeps its own, where others of its kind have left torch's headers compiled.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", cache_dir())
    torch.compiler.reset()


def test_a_compiled_engine_gives_the_same_text_and_compiles_nothing_while_it_serves(
    make_llm: Callable[..., LLM],
) -> None:
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


def test_ranks_compile_their_parts_of_blocks_with_the_sums_between_them(
    make_llm: Callable[..., LLM], tmp_path: Path
) -> None:
    TinyModel("qwen3-one-block", "Qwen3", {"num_hidden_layers": 1}).write(tmp_path)
    write_byte_tokenizer(tmp_path)
    expected = [make_llm(tmp_path).generate(prompt, PARAMS)[0].outputs[0].token_ids for prompt in PROMPTS]
    llm = make_llm(tmp_path, compile=True, tp=2)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled >= 2, "of rank 0, in this process"
    assert [llm.generate(prompt, PARAMS)[0].outputs[0].token_ids for prompt in PROMPTS] == expected
    assert counters["stats"]["unique_graphs"] == compiled
