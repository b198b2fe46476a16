"""Qwen3 (Qwen team, 2025): Llama's block with every query and key head normalized before rotation."""

from __future__ import annotations

from dataclasses import replace

from parhelion.models.config import ModelConfig
from parhelion.models.decoder import BuildOptions, DecoderModel
from parhelion.models.weights import Weights


class Qwen3ForCausalLM(DecoderModel):
    """The shared decoder with head norms."""

    def __init__(self, config: ModelConfig, weights: Weights, options: BuildOptions) -> None:
        super().__init__(replace(config, qk_norm=True), weights, options)
