"""SmolLM2's greedy tokens equal transformers' in float32, prompt by prompt and all in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
import torch
import transformers

from parhelion import LLM, SamplingParams

NUM_TOKENS = 40
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
def expected(smollm2_path: Path, llm: LLM) -> dict[str, list[int]]:
    """Greedy tokens by transformers' own forward pass over the same file."""
    torch.set_num_threads(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    )
    tokens = {}
    for name, prompt in PROMPTS.items():
        ids = torch.tensor([llm.tokenizer.encode(prompt)])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=-1
            )
        tokens[name] = out[0, ids.shape[1] :].tolist()
    return tokens


def test_the_long_prompt_is_long(llm: LLM) -> None:
    assert len(llm.tokenizer.encode(PROMPTS["long"])) >= 1500


@pytest.mark.parametrize("name", PROMPTS)
def test_greedy_tokens_equal_transformers(name: str, llm: LLM, expected: dict[str, list[int]]) -> None:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    assert llm.generate(PROMPTS[name], params)[0].outputs[0].token_ids == expected[name]


def test_greedy_tokens_in_one_batch_equal_transformers(llm: LLM, expected: dict[str, list[int]]) -> None:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
    results = llm.generate(list(PROMPTS.values()), params)
    assert [result.outputs[0].token_ids for result in results] == list(expected.values())


def test_the_default_dtype_keeps_the_greedy_text(smollm2_path: Path, llm: LLM, expected: dict[str, list[int]]) -> None:
    """Up to where the model ends its text: what it is made to say after that is a coin's toss between many tokens."""
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    with LLM(str(smollm2_path), dtype="auto", kv_cache_memory=256 << 20) as fast:
        results = fast.generate(list(PROMPTS.values()), params)
    end = llm.tokenizer.eos_token_ids[0]
    whole = [[*takewhile(lambda token: token != end, tokens)] for tokens in expected.values()]
    assert [result.outputs[0].text for result in results] == [llm.tokenizer.decode(tokens) for tokens in whole]
    assert sum(map(len, whole)) > 4 * NUM_TOKENS
