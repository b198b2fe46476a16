"""The KV cache's storage: how many blocks fit, and the tensors that hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.config import EngineConfig
from parhelion.errors import OutOfMemoryError
from parhelion.models.config import ModelConfig
from parhelion.platform.cpu import zeros_on_first_use


@dataclass(frozen=True)
class KVCacheSize:
    """Attributes:
    num_blocks, block_bytes: of all layers together.
    max_model_len: tokens of the longest request that the model and the blocks allow.
    """

    num_blocks: int
    block_bytes: int
    max_model_len: int

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.block_bytes


def plan_kv_cache(
    config: EngineConfig,
    model: ModelConfig,
    dtype: torch.dtype,
    free_bytes: int,
    on_gpu: bool = False,
    draft: ModelConfig | None = None,
) -> KVCacheSize:
    """Size the cache from ``kv_cache_memory`` or from a share of the free memory.

    Args:
        config: all options.
        model: whose keys and values are kept.
        dtype: of them.
        free_bytes: of memory.
        on_gpu: where that is.
        draft: a model that guesses, whose keys and values lie in the same blocks.

    Raises:
        OutOfMemoryError: the blocks would not hold one request of the length asked for, or not one at all.
    """
    elements = model.kv_elements_per_token + (draft.kv_elements_per_token if draft is not None else 0)
    block_bytes = elements * dtype.itemsize * config.block_size
    whose = "" if draft is None else ", the draft model's included"
    if config.kv_cache_memory is not None:
        budget, origin = config.kv_cache_memory, "kv_cache_memory"
        if budget > free_bytes:
            raise OutOfMemoryError(
                f"kv_cache_memory is {_mib(budget)}, but only {_mib(free_bytes)} of memory is free: lower it"
            )
    else:
        fraction = config.cache_fraction(on_gpu)
        budget, origin = int(free_bytes * fraction), f"{fraction:g} of the free memory"
    model_len = min(config.max_model_len or model.max_position, model.max_position)
    useful = config.max_num_seqs * -(-model_len // config.block_size)
    affordable = budget // block_bytes
    num_blocks = min(affordable, useful)
    storable = num_blocks * config.block_size
    if config.max_model_len is not None and storable < model_len:
        raise OutOfMemoryError(
            f"max_model_len is {model_len} tokens, which take {_mib(-(-model_len // config.block_size) * block_bytes)} "
            f"of KV cache{whose}; {origin} gives {_mib(budget)}: lower max_model_len or raise kv_cache_memory"
        )
    if affordable < 2:
        raise OutOfMemoryError(
            f"{origin} gives {_mib(budget)} of KV cache, less than two blocks of {_mib(block_bytes)}{whose}: "
            "raise kv_cache_memory or free some memory"
        )
    return KVCacheSize(num_blocks, block_bytes, min(model_len, storable))


def allocate_kv_cache(
    size: KVCacheSize, model: ModelConfig, block_size: int, dtype: torch.dtype, device: torch.device
) -> list[torch.Tensor]:
    """One [num_blocks, block_size, 2 * num_kv_heads, head_dim] tensor a layer, keys then values, all zero.

    Zeros matter: attention reads the unused end of a block under a mask, and 0 times anything finite is 0. On a CPU the
    operating system hands the pages out as they are first written.
    """
    shape = (size.num_blocks, block_size, 2 * model.num_kv_heads, model.head_dim)
    if device.type != "cpu":
        return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(model.num_layers)]
    return [zeros_on_first_use(shape, dtype) for _ in range(model.num_layers)]


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
