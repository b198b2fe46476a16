"""Programs that share a result count themselves, and the last one leaves the counters as it found them."""

from __future__ import annotations

import pytest
import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.launch import launch_gemm
from parhelion.ops.helion_provider import interpret


@pytest.mark.parametrize("swap_ab", [False, True])
def test_a_launch_leaves_zeros(swap_ab: bool):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(size, 96, generator=generator) for size in (5, 40))
    config = GemmConfig(16, 16, 32, swap_ab=swap_ab, split_k=3)
    for _ in range(2):
        y = launch_gemm(interpret, config, x, weight, torch.float32)
        torch.testing.assert_close(y, x @ weight.T)
        assert not arrival_counters(torch.device("cpu"), 1).any()
