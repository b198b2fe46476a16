"""Llama (Touvron et al., 2023; SmolLM2 and Mistral share it): grouped-query attention, rotary positions, SwiGLU."""

from __future__ import annotations

from parhelion.models.decoder import DecoderModel


class LlamaForCausalLM(DecoderModel):
    """The shared decoder as it stands; biases, rope scaling and sliding windows come from the configuration."""
