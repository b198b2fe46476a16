"""How ``argmax`` is launched: two programs, of chunks and of what they found."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.ops.argmax.contract import Argmax
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner

FEW_ROWS = 16
"""Up to here rows are cut into smaller chunks, so that more programs share one."""


@dataclass(frozen=True)
class ArgmaxConfig:
    """Attributes:
    chunk: elements of a row that a program takes.
    programmatic: see ``ops/programmatic.py``.
    """

    chunk: int
    programmatic: bool = False


Config = ArgmaxConfig


def default_config(contract: Argmax, bucket: int, target: GemmTarget) -> ArgmaxConfig:
    """Untuned, the same on all targets."""
    return ArgmaxConfig(2048 if bucket <= FEW_ROWS else 8192)


def candidates(contract: Argmax, bucket: int, target: GemmTarget) -> list[ArgmaxConfig]:
    """What is worth trying."""
    sizes = (ArgmaxConfig(chunk) for chunk in (1024, 2048, 4096, 8192))
    return list(dict.fromkeys((default_config(contract, bucket, target), *sizes)))


def launch(contract: Argmax, run: Runner, config: ArgmaxConfig, logits: torch.Tensor) -> torch.Tensor:
    """See ``Argmax``."""
    num_tokens = logits.shape[0]
    num_chunks = -(-contract.vocab_size // config.chunk)
    values = logits.new_empty((num_tokens, num_chunks), dtype=torch.float32)
    ids = torch.empty_like(values, dtype=torch.int32)
    out = logits.new_empty((num_tokens,), dtype=torch.int64)
    # Neighbouring programs take neighbouring chunks of a row.
    by_chunk = KernelConfig(loop_orders=((1, 0),), num_warps=_warps(config.chunk))
    run("argmax.argmax_chunks", by_chunk, logits, values, ids, config.chunk, config.programmatic)
    combining = KernelConfig(num_warps=_warps(1 << (num_chunks - 1).bit_length()))
    run("argmax.argmax_combine", combining, values, ids, out, num_chunks, config.programmatic)
    return out


def _warps(elements: int) -> int:
    return max(1, min(8, elements // 512))
