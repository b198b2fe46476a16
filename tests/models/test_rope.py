"""Rotary frequencies against transformers'."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from parhelion.models.config import RopeConfig
from parhelion.models.rope import inverse_frequencies


def hugging_face_config(head_dim: int, **rope_parameters: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4 * head_dim, num_attention_heads=4, head_dim=head_dim, rope_parameters=rope_parameters
    )


@pytest.mark.parametrize("head_dim", [16, 64, 128])
@pytest.mark.parametrize("theta", [10000.0, 100000.0, 1e6])
def test_unscaled_frequencies_are_transformers(head_dim: int, theta: float) -> None:
    config = hugging_face_config(head_dim, rope_type="default", rope_theta=theta)
    expected = LlamaRotaryEmbedding(config).inv_freq
    torch.testing.assert_close(inverse_frequencies(RopeConfig(theta=theta), head_dim), expected, rtol=0, atol=0)


@pytest.mark.parametrize("factor", [1.0, 2.0, 8.0])
def test_linear_frequencies_are_transformers(factor: float) -> None:
    config = hugging_face_config(64, rope_type="linear", rope_theta=5e5, factor=factor)
    expected, attention_factor = ROPE_INIT_FUNCTIONS["linear"](config, torch.device("cpu"))
    ours = inverse_frequencies(RopeConfig(theta=5e5, scaling="linear", factor=factor), 64)
    assert attention_factor == 1.0
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("factor", "low", "high", "original"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 2.0, 16.0, 512), (2.0, 1.0, 1.5, 64)],
)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama3_frequencies_are_transformers(
    head_dim: int, factor: float, low: float, high: float, original: int
) -> None:
    config = hugging_face_config(
        head_dim,
        rope_type="llama3",
        rope_theta=5e5,
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=original,
    )
    expected, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    ours = inverse_frequencies(
        RopeConfig(
            theta=5e5,
            scaling="llama3",
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_max_position=original,
        ),
        head_dim,
    )
    # The same formula in another order of float32 operations: a few units of 1.2e-7.
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=0)
    unscaled = inverse_frequencies(RopeConfig(theta=5e5), head_dim)
    assert ours[0] == unscaled[0], "short wavelengths are kept"
    torch.testing.assert_close(ours[-1], unscaled[-1] / factor, rtol=2e-6, atol=0)


def test_frequency_factors_of_a_gguf_file_divide_one_by_one() -> None:
    factors = (1.0, 1.0, 2.5, 8.0)
    ours = inverse_frequencies(RopeConfig(theta=100.0, freq_factors=factors), 8)
    expected = [100.0 ** (-2 * i / 8) / factor for i, factor in enumerate(factors)]
    torch.testing.assert_close(ours.double(), torch.tensor(expected, dtype=torch.float64), rtol=3e-7, atol=0)


def test_llama3_scaling_written_as_frequency_factors_gives_the_same_frequencies() -> None:
    scaled = RopeConfig(theta=5e5, scaling="llama3", factor=8.0)
    frequencies = inverse_frequencies(scaled, 128)
    factors = inverse_frequencies(RopeConfig(theta=5e5), 128) / frequencies
    as_in_gguf = inverse_frequencies(RopeConfig(theta=5e5, freq_factors=tuple(factors.tolist())), 128)
    torch.testing.assert_close(as_in_gguf, frequencies, rtol=3e-7, atol=0)
