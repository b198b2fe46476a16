"""What kernels over (tokens, heads) share on the host: a program takes some heads of one token, halves apart."""

from __future__ import annotations

import functools

import torch

from parhelion.ops.kernel_config import KernelConfig

FEW_TOKENS = 32
"""Up to here a program takes half as many heads, so that more of the device has something to do."""


def in_halves(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[M, heads * head_dim] as [M, heads, 2, head_dim / 2]; its rows may lie apart."""
    return x.unflatten(1, (-1, 2, head_dim // 2))


@functools.lru_cache(maxsize=4096)
def heads_config(num_heads: int, head_dim: int, bucket: int) -> KernelConfig:
    """The untuned config for M up to ``bucket``: about 2,048 elements a program, 16 a thread."""
    return _heads(num_heads, head_dim, 1024 if bucket <= FEW_TOKENS else 2048, 16)


def heads_candidates(num_heads: int, head_dim: int, bucket: int) -> list[KernelConfig]:
    """The untuned config, then larger and smaller programs with more and with fewer threads."""
    found = [heads_config(num_heads, head_dim, bucket)]
    for elements in (512, 1024, 2048, 4096):
        found += [_heads(num_heads, head_dim, elements, each) for each in (8, 16)]
    return list(dict.fromkeys(found))


def _heads(num_heads: int, head_dim: int, elements: int, elements_per_thread: int) -> KernelConfig:
    heads = max(1, min(elements // head_dim, 1 << (num_heads - 1).bit_length()))
    heads = 1 << (heads.bit_length() - 1)
    wanted = max(1, heads * head_dim // (32 * elements_per_thread))
    warps = min(4, 1 << (wanted.bit_length() - 1))
    # Neighbouring programs take neighbouring heads of a token, not the same heads of neighbouring tokens.
    return KernelConfig(block_sizes=(heads,), loop_orders=((1, 0, 2),), num_warps=warps)
