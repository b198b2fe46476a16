"""Schemes: in which form a model's linear layers keep their weights, and what becomes of their activations."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import torch

from parhelion.errors import ConfigError

ActivationQuant = Literal["none", "fp8_per_token", "fp8_per_group", "int8_per_token"]
"""What is done to a linear layer's input: nothing, or codes with a scale a token, or a token and group of 128."""

RequestedQuantization = Literal["fp8", "int8"]
"""What a user may ask for: quantize the weights while they are loaded."""

# Tables of embeddings are looked up, not multiplied: no scheme covers them.
_EMBEDDINGS = "embed_tokens"


@dataclass(frozen=True)
class QuantScheme:
    """How linear layers are quantized. A dequantized weight is code times scale.

    Attributes:
        name: for people.
        weight_dtype: of the codes, or None where weights keep the engine's dtype.
        activation: what is done to the input.
        block: side of the square of weights that shares a scale, or None where each output channel has its own.
        ignored: linear layers that stay as they are: full names (``model.layers.0.mlp.down_proj``), their last
            components (``down_proj``, ``mlp.down_proj``), or ``re:`` and a regular expression that the full name must
            match from its start.
        source: ``checkpoint`` when codes and scales are stored, ``load`` when they are made of float weights as these
            are read.
        scale_name: last component of a stored scale's name.
        scale_per_tensor: a stored scale is a single number for the whole weight. Once loaded it is one a channel.
    """

    name: str
    weight_dtype: torch.dtype | None = None
    activation: ActivationQuant = "none"
    block: int | None = None
    ignored: tuple[str, ...] = ()
    source: Literal["checkpoint", "load"] = "checkpoint"
    scale_name: str = "weight_scale"
    scale_per_tensor: bool = False

    @property
    def is_quantized(self) -> bool:
        """Whether it keeps codes at all."""
        return self.weight_dtype is not None

    def applies_to(self, module_name: str) -> bool:
        """Whether the linear layer of that name, such as ``model.layers.0.mlp.down_proj``, is quantized."""
        if not self.is_quantized or _last_components_are(module_name, _EMBEDDINGS):
            return False
        return not any(_matches(module_name, entry) for entry in self.ignored)


def _matches(module_name: str, entry: str) -> bool:
    if entry.startswith("re:"):
        return re.match(entry.removeprefix("re:"), module_name) is not None
    return _last_components_are(module_name, entry)


def _last_components_are(module_name: str, ending: str) -> bool:
    return module_name == ending or module_name.endswith(f".{ending}")


_LM_HEAD = ("lm_head",)

UNQUANTIZED = QuantScheme("unquantized")
"""Weights and activations in the engine's dtype."""

FP8_PER_TOKEN = QuantScheme("fp8_per_token", torch.float8_e4m3fn, "fp8_per_token", None, _LM_HEAD)
"""FP8 (E4M3) weights with a scale an output channel, inputs with a scale a token: compressed-tensors' FP8 dynamic."""

FP8_BLOCK = QuantScheme("fp8_block", torch.float8_e4m3fn, "fp8_per_group", 128, _LM_HEAD, scale_name="weight_scale_inv")
"""FP8 weights with a scale a block of 128 by 128, and inputs with a scale a token and group of 128 (DeepSeek-V3).

The stored name says inverse, but the scale multiplies.
"""

INT8_PER_TOKEN = QuantScheme("int8_per_token", torch.int8, "int8_per_token", None, _LM_HEAD)
"""INT8 weights with a scale an output channel, inputs with a scale a token: compressed-tensors' W8A8."""

_ON_REQUEST = {"fp8": FP8_PER_TOKEN, "int8": INT8_PER_TOKEN}

_HEAD_ON_REQUEST = {name: replace(scheme, ignored=(), source="load") for name, scheme in _ON_REQUEST.items()}


def choose_scheme(stored: QuantScheme | None, requested: RequestedQuantization | None) -> QuantScheme:
    """The scheme to load a model in.

    Args:
        stored: the checkpoint's own; None is unquantized.
        requested: what the user asks for; None takes the checkpoint as it is.

    Raises:
        ConfigError: the checkpoint is already quantized to another type.
    """
    held = stored or UNQUANTIZED
    if requested is None:
        return held
    wanted = _ON_REQUEST[requested]
    if not held.is_quantized:
        return replace(wanted, source="load")
    if held.weight_dtype == wanted.weight_dtype:
        return held
    raise ConfigError(
        f"quantization is {requested}, but the checkpoint's weights are already quantized ({held.name}): leave "
        "quantization out, or take the unquantized model"
    )


def choose_head_scheme(requested: RequestedQuantization | None) -> QuantScheme:
    """The scheme of the output head, which checkpoints of all formats keep unquantized.

    Args:
        requested: what the user asks for; None leaves it as it is.
    """
    return UNQUANTIZED if requested is None else _HEAD_ON_REQUEST[requested]
