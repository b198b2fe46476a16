"""How ``top_k_top_p_sampling`` is launched."""

from __future__ import annotations

import torch

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.launching import Runner, build_sizes
from parhelion.ops.top_k_top_p_sampling.contract import TopKTopPSampling

Config = KernelConfig

NUM_LOOPS = 6
"""Over the vocabulary."""


def default_config(contract: TopKTopPSampling, bucket: int, target: GemmTarget) -> KernelConfig:
    """Untuned, the same on all targets: 16 warps hide the latency of the cache."""
    return _config(8192, 16)


def candidates(contract: TopKTopPSampling, bucket: int, target: GemmTarget) -> list[KernelConfig]:
    """What is worth trying."""
    return [default_config(contract, bucket, target), _config(4096, 16), _config(4096, 8), _config(8192, 8)]


def build_inputs(contract: TopKTopPSampling, bucket: int) -> list[tuple[torch.Tensor, ...]]:
    """Parameters are columns of a table: of a single row the engine's are views of it, at any address and stride."""
    found = []
    for num_tokens in build_sizes(bucket):
        logits = torch.empty((num_tokens, contract.vocab_size))
        temperature, top_p, min_p, uniform = (torch.empty((num_tokens, 5))[:, column] for column in (1, 2, 3, 1))
        top_k = torch.empty((num_tokens, 5), dtype=torch.int32)[:, 1]
        found.append((logits, temperature, top_k, top_p, min_p, uniform))
    return found


def launch(
    contract: TopKTopPSampling,
    run: Runner,
    config: KernelConfig,
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """See ``TopKTopPSampling``."""
    ids = torch.empty((logits.shape[0],), dtype=torch.int64, device=logits.device)
    kernel = "top_k_top_p_sampling.top_k_top_p_sampling"
    run(kernel, config, logits, temperature, top_k, top_p, min_p, uniform, ids, config.programmatic)
    return ids


def _config(elements: int, num_warps: int) -> KernelConfig:
    return KernelConfig(block_sizes=(elements,) * NUM_LOOPS, num_warps=num_warps)
