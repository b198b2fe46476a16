"""In which dtypes a model computes on a device, and which providers that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from parhelion.config import EngineConfig, read_environment
from parhelion.errors import ConfigError
from parhelion.ops.registry import op
from parhelion.ops.resolve import parse_overrides
from parhelion.platform.compiler import cache_compiled_code


@dataclass(frozen=True)
class Arithmetic:
    """Attributes:
    dtype: of activations and KV cache.
    storage_dtype: of unquantized weights, as users are told; the embedding's table is kept in it.
    kernels: op to provider, where it is not left to the table.
    preferences: op to providers in the order to try, before the table's own.
    fusion: name of the plan.
    """

    dtype: torch.dtype
    storage_dtype: torch.dtype
    kernels: Mapping[str, str]
    preferences: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fusion: str = "plain"


def choose_arithmetic(config: EngineConfig, device: torch.device) -> Arithmetic:
    """What the options come to on a device.

    Raises:
        ConfigError: an option cannot be had here.
    """
    kernels = parse_overrides(config.kernels)
    if device.type != "cpu":
        if config.compile:
            raise ConfigError("compile is for CPUs: on a GPU nothing is compiled by TorchInductor; leave it out")
        dtype = torch.bfloat16 if config.dtype == "auto" else _torch_dtype(config.dtype)
        return Arithmetic(dtype, dtype, kernels, fusion="fused" if config.fusion == "auto" else config.fusion)
    if config.compile:
        _check_compiler(device)
    fusion = "plain" if config.fusion == "auto" else config.fusion
    half = op("linear").provider("fbgemm_fp16").why_not(device) is None
    if config.dtype in ("auto", "float16") and half:
        # Half the memory traffic, and arithmetic that keeps float32's text.
        return Arithmetic(torch.float32, torch.float16, kernels, {"linear": ("fbgemm_fp16",)}, fusion)
    dtype = torch.float32 if config.dtype == "auto" else _torch_dtype(config.dtype)
    preferences = {"linear": ("onednn", "torch") if dtype == torch.float32 else ("torch",)}
    return Arithmetic(dtype, dtype, kernels, preferences, fusion)


def _check_compiler(device: torch.device) -> None:
    why_not = op("rms_norm").provider("inductor").why_not(device)
    if why_not is not None:
        raise ConfigError(f"compile is not to be had here: {why_not}, or leave compile out")
    cache_compiled_code(read_environment().home / "inductor")


def _torch_dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype
