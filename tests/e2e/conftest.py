"""Models for the end-to-end tests, written or fetched once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from parhelion import LLM
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of
from tests.e2e.tiny_models import TINY_MODELS


def write_byte_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges and with two special tokens, beside a tiny checkpoint."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|begin|>": 0, "<|end|>": 1, **{symbol: index + 2 for index, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama with a tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    TINY_MODELS[0].write(folder)
    write_byte_tokenizer(folder)
    return folder


@pytest.fixture
def make_llm(tiny_path: Path) -> Iterator[Callable[..., LLM]]:
    """Opens offline engines in float32; at the end of the test each must be empty and sound."""
    opened: list[LLM] = []

    def make(model: Path | None = None, **options: Any) -> LLM:
        merged = {"dtype": "float32", "kv_cache_memory": 8 << 20, "threads": 1, "max_num_seqs": 32, **options}
        merged["max_num_batched_tokens"] = max(merged.get("max_num_batched_tokens", 256), merged["max_num_seqs"])
        opened.append(LLM(str(model or tiny_path), **merged))
        return opened[-1]

    yield make
    for llm in opened:
        assert_empty(llm)
        llm.shutdown()


@pytest.fixture
def alone(make_llm: Callable[..., LLM]) -> list[Tokens]:
    """Every request run by itself: one at a time, prompt in one piece, no prefix cache, no overlap, no guesses."""
    llm = make_llm(overlap=False, enable_prefix_caching=False)
    results = [llm.generate(prompt, params)[0] for prompt, params in zip(PROMPTS, PARAMS, strict=True)]
    assert len({str(tokens) for tokens in tokens_of(results)}) == len(PROMPTS)
    return tokens_of(results)


def assert_empty(llm: LLM) -> None:
    """Nothing runs, nothing waits, and no block is referred to."""
    while llm._core.has_work:
        llm._core.step()
    llm.check_integrity()
    stats = llm.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0)


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)
