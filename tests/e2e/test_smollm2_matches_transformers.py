"""SmolLM2's greedy tokens equal transformers' in float32, all in one batch and alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import torch
import transformers

from parhelion import LLM, SamplingParams
from tests.gguf_read_once import gguf_read_once

NUM_TOKENS = 40
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


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(str(smollm2_path), dtype="float32", kv_cache_memory=256 << 20) as opened:
        yield opened


@pytest.fixture(scope="module")
def reference(smollm2_path: Path) -> transformers.PreTrainedModel:
    """transformers' own model of the same file."""
    torch.set_num_threads(2)
    with gguf_read_once():
        return transformers.AutoModelForCausalLM.from_pretrained(
            smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
        )


@pytest.fixture(scope="module")
def together(llm: LLM) -> list[list[int]]:
    """Our tokens of all prompts, from one batch."""
    return [result.outputs[0].token_ids for result in llm.generate(list(PROMPTS.values()), PARAMS)]


@pytest.fixture(scope="module")
def expected(llm: LLM, together: list[list[int]], reference: transformers.PreTrainedModel) -> list[list[int]]:
    """transformers' choice of each token, with ours before it: where all are the same, they are its greedy tokens."""
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


@pytest.mark.parametrize("name", ["chat", "long", "one word"])
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
