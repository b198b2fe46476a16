"""How many blocks fit, and the errors where too few do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parhelion.config import EngineConfig
from parhelion.engine.kv_storage import KVCacheSize, allocate_kv_cache, plan_kv_cache
from parhelion.errors import OutOfMemoryError
from parhelion.models.config import ModelConfig, RopeConfig

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    rope=RopeConfig(),
    max_position=1024,
    tie_word_embeddings=True,
)
BLOCK_BYTES = 2 * 3 * 2 * 8 * 4 * 16
"""Keys and values, layers, heads, head_dim, float32, tokens."""


def plan(free: int = 1 << 40, dtype: torch.dtype = torch.float32, **options: Any) -> KVCacheSize:
    return plan_kv_cache(EngineConfig(model="m", **options), MODEL, dtype, free)


def test_a_given_memory_is_filled_with_whole_blocks_and_never_exceeded() -> None:
    for extra in (0, 1, BLOCK_BYTES - 1):
        size = plan(kv_cache_memory=100 * BLOCK_BYTES + extra)
        assert (size.num_blocks, size.block_bytes) == (100, BLOCK_BYTES)
        assert size.total_bytes == 100 * BLOCK_BYTES


def test_without_a_given_memory_the_fraction_of_what_is_free_is_taken() -> None:
    assert plan(free=1000 * BLOCK_BYTES, kv_cache_fraction=0.25).num_blocks == 250
    assert plan(free=1000 * BLOCK_BYTES, kv_cache_fraction=0.95).num_blocks == 950


def test_half_the_bytes_an_element_give_twice_the_blocks() -> None:
    memory = 100 * BLOCK_BYTES
    assert plan(kv_cache_memory=memory, dtype=torch.bfloat16).num_blocks == 200
    assert plan(kv_cache_memory=memory, block_size=32).num_blocks == 50


def test_no_more_blocks_than_all_slots_could_ever_use() -> None:
    assert plan(max_num_seqs=4, max_model_len=100).num_blocks == 4 * 7
    assert plan(max_num_seqs=4).num_blocks == 4 * 64


def test_the_longest_request_is_the_models_limit_the_users_or_what_the_blocks_hold() -> None:
    assert plan().max_model_len == 1024
    assert plan(max_model_len=100).max_model_len == 100
    assert plan(kv_cache_memory=10 * BLOCK_BYTES).max_model_len == 160


def test_more_memory_than_is_free_is_refused_with_both_figures() -> None:
    with pytest.raises(OutOfMemoryError, match=r"kv_cache_memory is 2\.0 MiB, but only 1\.0 MiB of memory is free"):
        plan(free=1 << 20, kv_cache_memory=2 << 20)


def test_a_length_asked_for_that_does_not_fit_is_refused_with_what_it_takes() -> None:
    blocks = 64 * BLOCK_BYTES / 2**20
    with pytest.raises(OutOfMemoryError, match=rf"max_model_len is 1024 tokens, which take {blocks:.1f} MiB"):
        plan(kv_cache_memory=63 * BLOCK_BYTES, max_model_len=1024)
    assert plan(kv_cache_memory=64 * BLOCK_BYTES, max_model_len=1024).max_model_len == 1024


def test_the_error_names_the_fraction_where_no_memory_was_given() -> None:
    with pytest.raises(OutOfMemoryError, match=r"0\.25 of the free memory gives .* raise kv_cache_memory"):
        plan(free=64 * BLOCK_BYTES, max_model_len=1024)


@pytest.mark.parametrize("blocks", [0, 1])
def test_less_than_two_blocks_is_refused(blocks: int) -> None:
    with pytest.raises(OutOfMemoryError, match="less than two blocks"):
        plan(kv_cache_memory=max(1, blocks * BLOCK_BYTES))
    assert plan(kv_cache_memory=2 * BLOCK_BYTES).num_blocks == 2


def test_a_single_short_request_that_needs_one_block_is_not_mistaken_for_a_lack_of_memory() -> None:
    size = plan(max_num_seqs=1, max_model_len=16)
    assert (size.num_blocks, size.max_model_len) == (1, 16)


def test_the_storage_is_a_zeroed_tensor_a_layer_that_holds_what_was_planned() -> None:
    size = plan(kv_cache_memory=10 * BLOCK_BYTES)
    tensors = allocate_kv_cache(size, MODEL, 16, torch.float32, torch.device("cpu"))
    assert len(tensors) == MODEL.num_layers
    assert sum(tensor.nbytes for tensor in tensors) == size.total_bytes
    assert all(tensor.shape == tensors[0].shape and not tensor.any() for tensor in tensors)
