"""Greedy tokens of tiny random checkpoints equal transformers' in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parhelion import LLM, SamplingParams
from tests.e2e.tiny_models import TINY_MODELS, TinyModel, write_byte_tokenizer

NUM_TOKENS = 64


@pytest.mark.parametrize("tiny", TINY_MODELS, ids=lambda tiny: tiny.name)
def test_greedy_tokens_and_logprobs_equal_transformers(
    tiny: TinyModel, tmp_path: Path, make_llm: Callable[..., LLM]
) -> None:
    reference = tiny.write(tmp_path)
    write_byte_tokenizer(tmp_path)
    if tiny.shard_size is not None:
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
    generator = torch.Generator().manual_seed(7)
    prompts = [torch.randint(2, 512, (length,), generator=generator).tolist() for length in (1, 5, 40, 70)]
    llm = make_llm(tmp_path, block_size=8)
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=0)
    results = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params)
    for prompt, result in zip(prompts, results, strict=True):
        ids = result.outputs[0].token_ids
        assert len(ids) == NUM_TOKENS
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + ids])).logits[0].double()
        predicted = logits[len(prompt) - 1 : -1]
        assert ids == predicted.argmax(-1).tolist()
        expected = predicted.log_softmax(-1).max(-1).values
        measured = torch.tensor(
            [entry[token].logprob for entry, token in zip(result.outputs[0].logprobs, ids, strict=True)]
        ).double()
        # float32 sums in another order over three layers: far above rounding, far below any wrong mask or rotation.
        torch.testing.assert_close(measured, expected, atol=2e-4, rtol=0)
