"""Made-up weights: repeatable, of the right kind, and enough to build layers of from a bare config.json."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from parhelion.errors import CheckpointError
from parhelion.models.checkpoint import read_model_config
from parhelion.models.random_values import RandomValues
from parhelion.models.weights import DummyWeights
from parhelion.quantization import (
    FP8_BLOCK,
    FP8_PER_TOKEN,
    INT8_PER_TOKEN,
    UNQUANTIZED,
    QuantScheme,
    dequantize,
    load_linear,
)
from tests.checkpoints.quantized import FORMATS, write_quantized_config
from tests.checkpoints.tiny import write_config

CPU = torch.device("cpu")
GATE_UP = ("model.layers.0.mlp.gate_proj", "model.layers.0.mlp.up_proj")
STORED = [FP8_PER_TOKEN, FP8_BLOCK, INT8_PER_TOKEN, replace(FP8_PER_TOKEN, scale_per_tensor=True)]


@pytest.mark.parametrize("scheme", [*STORED, replace(FP8_PER_TOKEN, source="load"), UNQUANTIZED])
def test_layers_of_every_scheme_have_deviation_002(scheme: QuantScheme):
    weights = DummyWeights(0, False, scheme)
    linear = load_linear(weights, scheme, GATE_UP, (384, 256), 300, True, torch.bfloat16, CPU)
    values = dequantize(linear)
    assert values.shape == (640, 300)
    assert linear.weight.dtype == (scheme.weight_dtype or torch.bfloat16)
    assert linear.scales is None or bool((linear.scales > 0).all())
    assert values.isfinite().all()
    # 192,000 samples: the deviation is known to 0.2%; rounding and cutting off at four deviations change it by less.
    assert values.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(values.mean().item()) < 3e-4


@pytest.mark.parametrize("scheme", [FP8_PER_TOKEN, UNQUANTIZED])
def test_large_tensors_share_draws_and_no_two_rows_are_alike(scheme: QuantScheme, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    normal = RandomValues._normal

    def counting(self: RandomValues, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        drawn.append(math.prod(shape))
        return normal(self, shape, dtype)

    monkeypatch.setattr(RandomValues, "_normal", counting)
    weights = DummyWeights(3, False, scheme)
    first, second = (weights.get(f"model.layers.{i}.mlp.down_proj.weight", 5120, 4096) for i in (0, 1))
    assert sum(drawn) < 1 << 24 < first.numel()
    assert len(torch.unique(first[:, :8].float(), dim=0)) > 5000
    assert not torch.equal(first[:8].float(), second[:8].float())


def test_the_seed_decides():
    def first(seed: int) -> torch.Tensor:
        return DummyWeights(seed, False).get("model.layers.0.mlp.up_proj.weight", 4, 5)

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_what_is_no_linear_layer_is_plain():
    weights = DummyWeights(0, False, replace(FP8_PER_TOKEN, ignored=("lm_head", "down_proj")), dtype=torch.bfloat16)
    assert weights.get("model.embed_tokens.weight", 8, 4).dtype == torch.bfloat16
    assert weights.get("lm_head.weight", 8, 4).dtype == torch.bfloat16
    assert weights.get("model.layers.0.mlp.down_proj.weight", 8, 4).dtype == torch.bfloat16
    assert weights.get("model.layers.0.mlp.up_proj.weight", 8, 4).dtype == torch.float8_e4m3fn
    assert (weights.get("model.layers.0.self_attn.q_norm.weight", 4) == 1).all()
    assert (weights.get("model.layers.0.self_attn.q_proj.bias", 4) == 0).all()
    assert weights.num_bytes == 3 * 64 + 32 + 2 * 8


def test_there_is_what_the_scheme_needs():
    weights = DummyWeights(0, True, FP8_BLOCK)
    assert not weights.has("lm_head.weight")
    assert DummyWeights(0, False).has("lm_head.weight")
    assert weights.has("model.layers.0.mlp.up_proj.weight_scale_inv")
    assert not weights.has("model.layers.0.mlp.up_proj.weight_scale")
    assert not weights.has("model.embed_tokens.weight_scale_inv")


@pytest.mark.parametrize("name", FORMATS)
def test_a_bare_config_is_enough(tmp_path: Path, name: str):
    config = read_model_config(write_quantized_config(tmp_path, name))
    assert config.quantization is not None
    weights = DummyWeights(0, config.tie_word_embeddings, config.quantization)
    rows = (config.intermediate_size,) * 2
    linear = load_linear(weights, config.quantization, GATE_UP, rows, config.hidden_size, False, torch.bfloat16, CPU)
    assert linear.scheme == config.quantization


def test_a_bare_config_is_no_checkpoint(tmp_path: Path):
    assert read_model_config(write_config(tmp_path)).quantization is None
    with pytest.raises(CheckpointError, match="no file or folder"):
        read_model_config(tmp_path / "nowhere")
