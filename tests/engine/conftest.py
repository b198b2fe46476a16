"""Settings and fixtures of these tests."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from parhelion.models.token_bytes import byte_level_characters
from parhelion.models.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """One token a byte: ``<|begin|>`` is 0, ``<|end|>`` (which ends a text) 1, then the bytes in order from 2.

    ``<|beyond|>`` is 258: one more than a model of 258 embeddings has.
    """
    bytes_of = byte_level_characters()
    vocab = {"<|begin|>": 0, "<|end|>": 1, **{symbol: byte + 2 for symbol, byte in bytes_of.items()}}
    backend = Backend(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|begin|>", "<|end|>", "<|beyond|>"])
    return Tokenizer(backend, eos_token_ids=(1,))
