"""Qwen2 (Yang et al., 2024): Llama's block with biases on queries, keys and values."""

from __future__ import annotations

from dataclasses import replace

from parhelion.models.config import ModelConfig
from parhelion.models.decoder import BuildOptions, DecoderModel
from parhelion.models.weights import Weights


class Qwen2ForCausalLM(DecoderModel):
    """The shared decoder; the architecture itself says which projections have a bias."""

    def __init__(self, config: ModelConfig, weights: Weights, options: BuildOptions) -> None:
        config = replace(config, attention_bias=True, attention_output_bias=False)
        super().__init__(config, weights, options)
