"""How ``embedding`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.embedding.contract import Embedding
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner

Config = KernelConfig


def default_config(contract: Embedding, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets."""
    return _config(min(2048, 1 << (contract.hidden_size - 1).bit_length()))


def candidates(contract: Embedding, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return list(dict.fromkeys((default_config(contract, bucket, target), _config(512), _config(1024), _config(4096))))


def launch(
    contract: Embedding, run: Runner, config: KernelConfig, token_ids: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """See ``Embedding``."""
    hidden = weight.new_empty((token_ids.shape[0], contract.hidden_size))
    run("embedding.embedding", config, token_ids, weight, hidden, config.programmatic)
    return hidden


def _config(elements: int) -> KernelConfig:
    """``elements`` of a row for a program."""
    return KernelConfig((elements,), ((1, 0),), num_warps=max(1, min(4, elements // 512)))
