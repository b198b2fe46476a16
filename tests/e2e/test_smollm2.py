"""SmolLM2's greedy tokens equal transformers' in float32: all in one batch and alone, on several ranks and in stages;
and guesses change none.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from parhelion import LLM, SamplingParams
from parhelion.errors import ConfigError
from parhelion.models.eagle3_config import read_eagle3_config
from tests.e2e.draft_models import leave_out_layers
from tests.e2e.eagle3_scratch import HEAD_JSON
from tests.gguf_read_once import gguf_read_once
from tests.models.eagle3_heads import head_tensors, write_head

NUM_TOKENS = 24
PARAMS = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
STORY = (
    "In the valley below the old observatory there lived a keeper of clocks who had never once been late. "
    "Every morning she wound the {n} clocks of house number {n}, and wrote the time into a book of {n} pages. "
)
PROMPTS = {
    "chat": "<|im_start|>user\nWhat is the capital of Italy, and why go there?<|im_end|>\n<|im_start|>assistant\n",
    "code": "def quicksort(items: list[int]) -> list[int]:\n    if len(items) <= 1:\n        return items\n    ",
    "long": "".join(STORY.format(n=n) for n in range(32)),
    "one word": "Hello",
    "emoji": "My favourite animals are 🦊, 🐙 and 🦉 because",
    "CJK": "日本の首都は東京です。中国的首都是北京。대한민국의 수도는",
}

SMALL: dict[str, Any] = {"dtype": "float32", "kv_cache_memory": 16 << 20, "max_model_len": 256, "threads": 1}

FERRY = "The ferry leaves at nine, the ferry returns at noon, and the ferry leaves again at one. "
REPEAT = f"<|im_start|>user\nRepeat this twice: {FERRY}<|im_end|>\n<|im_start|>assistant\n{FERRY}"
REPEAT_PARAMS = [
    SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True),
    SamplingParams(temperature=0.7, top_p=0.9, seed=5, max_tokens=NUM_TOKENS, ignore_eos=True),
    SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, repetition_penalty=1.1),
]
LEFT_OUT = [(14,), (12, 18)]
"""Layers that draft models lack: they agree about most tokens, but by no means all."""


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(str(smollm2_path), dtype="float32", kv_cache_memory=256 << 20) as opened:
        yield opened


@pytest.fixture(scope="module")
def together(llm: LLM) -> list[list[int]]:
    """Our tokens of all prompts, from one batch."""
    return [result.outputs[0].token_ids for result in llm.generate(list(PROMPTS.values()), PARAMS)]


@pytest.fixture(scope="module")
def expected(llm: LLM, together: list[list[int]], smollm2_path: Path) -> list[list[int]]:
    """transformers' choice of each token, with ours before it: where all are the same, they are its greedy tokens."""
    torch.set_num_threads(2)
    with gguf_read_once():
        # Its own model of the same file.
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
        )
    chosen = []
    for prompt, tokens in zip(PROMPTS.values(), together, strict=True):
        ids = torch.tensor([[*llm.tokenizer.encode(prompt), *tokens[:-1]]])
        with torch.inference_mode():
            logits = reference(ids, logits_to_keep=NUM_TOKENS).logits[0]
        chosen.append(logits.argmax(-1).tolist())
    return chosen


def test_the_long_prompt_is_long(llm: LLM) -> None:
    assert len(llm.tokenizer.encode(PROMPTS["long"])) >= 1500


def test_greedy_tokens_in_one_batch_equal_transformers(together: list[list[int]], expected: list[list[int]]) -> None:
    assert [len(tokens) for tokens in together] == [NUM_TOKENS] * len(PROMPTS)
    assert together == expected


@pytest.mark.parametrize("name", ["long", "one word"])
def test_greedy_tokens_of_a_request_alone_equal_transformers(name: str, llm: LLM, expected: list[list[int]]) -> None:
    assert llm.generate(PROMPTS[name], PARAMS)[0].outputs[0].token_ids == expected[[*PROMPTS].index(name)]


def test_the_default_dtype_keeps_the_greedy_text(smollm2_path: Path, llm: LLM, expected: list[list[int]]) -> None:
    """Up to where the model ends its text: what it is made to say after that is a coin's toss between many tokens."""
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    with LLM(str(smollm2_path), dtype="auto", kv_cache_memory=256 << 20) as fast:
        results = fast.generate(list(PROMPTS.values()), params)
    end = llm.tokenizer.eos_token_ids[0]
    whole = [[*takewhile(lambda token: token != end, tokens)] for tokens in expected]
    assert [result.outputs[0].text for result in results] == [llm.tokenizer.decode(tokens) for tokens in whole]
    assert sum(map(len, whole)) > 4 * NUM_TOKENS


def test_three_ranks_choose_the_same_and_two_are_refused(smollm2_path: Path, expected: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match=r"tp is 2, but 9 heads are no multiple of tp 2; tp may be 1, 3$"):
        LLM(str(smollm2_path), tp=2, **SMALL)
    assert_first_tokens(smollm2_path, expected, tp=3)


def test_two_stages_choose_the_same_and_more_than_there_are_layers_are_refused(
    smollm2_path: Path, expected: list[list[int]]
) -> None:
    with pytest.raises(ConfigError, match=r"pp is 31, but the model has 30 layers .*; pp may be 1 to 30$"):
        LLM(str(smollm2_path), pp=31, **SMALL)
    assert_first_tokens(smollm2_path, expected, pp=2)


def test_two_replicas_choose_the_same(smollm2_path: Path, expected: list[list[int]]) -> None:
    assert_first_tokens(smollm2_path, expected, ("chat", "one word"), dp=2)


def assert_first_tokens(
    path: Path, expected: list[list[int]], names: tuple[str, ...] = ("chat",), **ranks: int
) -> None:
    params = SamplingParams(temperature=0, max_tokens=10, ignore_eos=True)
    with LLM(str(path), **ranks, **SMALL) as llm:
        found = [output.outputs[0].token_ids for output in llm.generate([PROMPTS[name] for name in names], params)]
    assert found == [expected[[*PROMPTS].index(name)][:10] for name in names]


def repeated(llm: LLM) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate([REPEAT] * len(REPEAT_PARAMS), REPEAT_PARAMS)]


@pytest.fixture(scope="module")
def plain(llm: LLM) -> list[list[int]]:
    """What it says without guesses."""
    return repeated(llm)


def with_guesses(path: Path, way: str, **options: Any) -> tuple[list[list[int]], float]:
    with LLM(str(path), dtype="float32", kv_cache_memory=128 << 20, speculate=way, **options) as llm:
        return repeated(llm), llm.stats().acceptance_rate or 0.0


@pytest.mark.parametrize("way", ["ngram", "auto"])
def test_with_guesses_it_says_the_same(way: str, plain: list[list[int]], smollm2_path: Path) -> None:
    tokens, acceptance = with_guesses(smollm2_path, way)
    assert tokens == plain
    # Whether any guess pays is up to the machine; "ngram" makes them whether they pay or not.
    assert acceptance > 0 or way == "auto"


@pytest.mark.parametrize("left_out", LEFT_OUT, ids=str)
def test_with_a_draft_model_it_says_the_same(
    left_out: tuple[int, ...], plain: list[list[int]], smollm2_path: Path, tmp_path: Path
) -> None:
    draft = leave_out_layers(smollm2_path, left_out, tmp_path, torch.bfloat16)
    tokens, acceptance = with_guesses(smollm2_path, "draft", draft_model=str(draft))
    assert tokens == plain
    assert 0 < acceptance < 1


def test_with_a_head_it_says_the_same(plain: list[list[int]], smollm2_path: Path, tmp_path: Path) -> None:
    # None is published for it: this one is hardly ever right, and everything that it guesses is checked.
    described = HEAD_JSON | {"vocab_size": 49152, "target_hidden_size": 576, "max_position_embeddings": 8192}
    del described["eagle_aux_hidden_state_layer_ids"]
    config = read_eagle3_config(write_head(tmp_path, described))
    write_head(tmp_path, described, head_tensors(config))
    with LLM(
        str(smollm2_path), dtype="float32", kv_cache_memory=128 << 20, speculate="eagle3", draft_model=str(tmp_path)
    ) as llm:
        assert repeated(llm) == plain
        assert llm.stats().guessed_tokens_total > NUM_TOKENS
