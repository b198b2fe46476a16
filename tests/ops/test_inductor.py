"""The fused element-wise ops agree with the eager ones, and their absence is said clearly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from parhelion import EngineConfig
from parhelion.engine.load import load_engine
from parhelion.errors import ConfigError
from parhelion.ops.elementwise import ElementwiseOps, inductor_ops, inductor_unavailable, provider_report, torch_ops
from parhelion.platform.compiler import cpp_compiler

# Fusing changes the order of float32 sums over 48 elements, and nothing else.
TOLERANCE = {"atol": 2e-6, "rtol": 2e-6}


def every_op(ops: ElementwiseOps, num_tokens: int) -> list[torch.Tensor]:
    """Results of all four, on the same random inputs."""
    generator = torch.Generator().manual_seed(num_tokens)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    hidden, weight = random(num_tokens, 48), random(48)
    normed, residual = ops.fused_add_rms_norm(random(num_tokens, 48), random(num_tokens, 48), weight, 1e-5)
    heads = random(num_tokens, 5, 16)
    rotated = ops.rotary_embedding(heads[:, :3], random(num_tokens, 1, 16), random(num_tokens, 1, 16))
    return [
        ops.rms_norm(hidden, weight, 1e-5),
        normed,
        residual,
        rotated,
        heads,
        ops.silu_and_mul(random(num_tokens, 96)),
    ]


def test_fused_ops_agree_with_eager_ones() -> None:
    assert inductor_unavailable() is None, "this test needs a C++ compiler: install g++"
    fused = inductor_ops()
    with torch.inference_mode():
        for num_tokens in (1, 2, 7):
            for ours, eager in zip(every_op(fused, num_tokens), every_op(torch_ops(), num_tokens), strict=True):
                torch.testing.assert_close(ours, eager, **TOLERANCE)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def test_without_a_compiler_the_report_names_the_way_out(no_compiler: Callable[[], None]) -> None:
    assert cpp_compiler() is None
    entry = next(item for item in provider_report() if item.provider == "inductor")
    assert not entry.available
    assert "g++" in entry.reason


def test_compile_without_a_compiler_is_refused(no_compiler: Callable[[], None], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compile is not to be had here"):
        load_engine(EngineConfig(model="unused", compile=True), tmp_path, "unused")
