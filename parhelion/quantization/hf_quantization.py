"""``quantization_config`` of a Hugging Face config.json as a scheme.

Formats: compressed-tensors (https://github.com/vllm-project/compressed-tensors, as in RedHatAI's ``*-FP8-dynamic`` and
``*-quantized.w8a8``) and the block FP8 of DeepSeek-V3 and Qwen3's own ``*-FP8`` (transformers' ``fp8``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from parhelion.errors import CheckpointError
from parhelion.quantization.scheme import FP8_BLOCK, FP8_PER_TOKEN, INT8_PER_TOKEN, QuantScheme

_SUPPORTED = (
    "compressed-tensors with 8-bit float or int weights per channel or per tensor and dynamic activations of the same "
    "type per token; fp8 with weight_block_size [128, 128] and dynamic activations"
)
_COMPRESSED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")
_BY_TYPE = {"float": FP8_PER_TOKEN, "int": INT8_PER_TOKEN}

_Json = TypeVar("_Json", bound=msgspec.Struct)


class _Arguments(msgspec.Struct):
    """compressed-tensors' QuantizationArgs: how one kind of tensor is quantized."""

    num_bits: int = 8
    type: str = "int"
    symmetric: bool = True
    strategy: str | None = None
    dynamic: bool | str | None = False


class _Group(msgspec.Struct):
    """Modules that are quantized alike."""

    targets: list[str] = []
    weights: _Arguments | None = None
    input_activations: _Arguments | None = None
    output_activations: _Arguments | None = None


class _Sparsity(msgspec.Struct):
    format: str = "dense"


class _CompressedTensors(msgspec.Struct):
    """What is read of compressed-tensors' configuration. Scales of a KV cache are not: it keeps its own dtype."""

    config_groups: dict[str, _Group] = {}
    format: str | None = None
    ignore: list[str] | None = None
    sparsity_config: _Sparsity | None = None


class _Fp8(msgspec.Struct):
    """What is read of transformers' fine-grained FP8 configuration; ``ignored_layers`` is an older name."""

    activation_scheme: str = "dynamic"
    fmt: str = "e4m3"
    scale_fmt: str | None = None
    weight_block_size: list[int] | None = None
    modules_to_not_convert: list[str] | None = None
    ignored_layers: list[str] | None = None


def read_quantization_config(path: Path, config: Mapping[str, object]) -> QuantScheme:
    """The scheme that a ``quantization_config`` describes.

    Args:
        path: of the file it stands in, for messages.
        config: the decoded JSON object.

    Raises:
        CheckpointError: a scheme that is not supported, or a description that makes no sense.
    """
    method = config.get("quant_method")
    if method == "compressed-tensors":
        scheme = _compressed_tensors(path, _convert(path, config, _CompressedTensors))
    elif method == "fp8":
        scheme = _fine_grained_fp8(path, _convert(path, config, _Fp8))
    else:
        raise _unsupported(path, str(method or "no quant_method"))
    _check_patterns(path, scheme)
    return scheme


def _compressed_tensors(path: Path, config: _CompressedTensors) -> QuantScheme:
    if config.sparsity_config is not None and config.sparsity_config.format != "dense":
        raise _unsupported(path, f"compressed-tensors with sparsity {config.sparsity_config.format}")
    if not config.config_groups:
        raise _unsupported(path, "compressed-tensors without config_groups")
    schemes = {_group_scheme(path, group) for group in config.config_groups.values()}
    if len(schemes) > 1:
        raise _unsupported(path, "compressed-tensors with groups that are quantized differently")
    if config.format is not None and config.format not in _COMPRESSED_FORMATS:
        raise _unsupported(path, f"compressed-tensors in the format {config.format}")
    return replace(schemes.pop(), ignored=tuple(config.ignore or ()))


def _group_scheme(path: Path, group: _Group) -> QuantScheme:
    weights, inputs = group.weights, group.input_activations
    found = f"compressed-tensors with {_text(weights)} weights and {_text(inputs)} activations"
    if group.targets != ["Linear"]:
        raise _unsupported(path, f"{found} for {', '.join(group.targets) or 'nothing'} instead of all of Linear")
    if weights is None or inputs is None or group.output_activations is not None:
        raise _unsupported(path, found + (" and quantized outputs" if group.output_activations else ""))
    alike = weights.type == inputs.type and weights.num_bits == inputs.num_bits == 8
    static_weights = weights.symmetric and not weights.dynamic and weights.strategy in ("channel", "tensor", None)
    dynamic_inputs = inputs.symmetric and inputs.dynamic is True and inputs.strategy == "token"
    scheme = _BY_TYPE.get(weights.type)
    if scheme is None or not (alike and static_weights and dynamic_inputs):
        raise _unsupported(path, found)
    # Without a strategy, compressed-tensors means one scale for the tensor.
    return replace(scheme, scale_per_tensor=weights.strategy != "channel")


def _fine_grained_fp8(path: Path, config: _Fp8) -> QuantScheme:
    if config.weight_block_size is None:
        raise _unsupported(path, f"fp8 with a scale a tensor and {config.activation_scheme} activations")
    found = f"fp8 ({config.fmt}) with weight_block_size {config.weight_block_size}"
    if (
        config.weight_block_size != [128, 128]
        or config.activation_scheme != "dynamic"
        or config.fmt != "e4m3"
        or config.scale_fmt not in (None, "float")
    ):
        scales = f" and {config.scale_fmt} scales" if config.scale_fmt else ""
        raise _unsupported(path, f"{found}, {config.activation_scheme} activations{scales}")
    entries = config.modules_to_not_convert or config.ignored_layers or []
    # An entry covers the modules below it as well, and may be a regular expression (transformers'
    # should_convert_module). The projection to the vocabulary is never quantized in this format.
    below = [f"re:(?:{'|'.join(entries)})(?:\\.|$)"] if entries else []
    return replace(FP8_BLOCK, ignored=("lm_head", *entries, *below))


def _convert(path: Path, config: Mapping[str, object], kind: type[_Json]) -> _Json:
    try:
        return msgspec.convert(config, type=kind)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"{path}: quantization_config cannot be used ({error}): fetch it again") from error


def _check_patterns(path: Path, scheme: QuantScheme) -> None:
    for entry in scheme.ignored:
        try:
            re.compile(entry.removeprefix("re:") if entry.startswith("re:") else "")
        except re.error as error:
            raise CheckpointError(
                f"{path}: quantization_config ignores {entry!r}, which is no pattern ({error})"
            ) from error


def _text(arguments: _Arguments | None) -> str:
    """Words for one kind of tensor, such as ``8-bit float per channel``."""
    if arguments is None:
        return "unquantized"
    extras = ("" if arguments.symmetric else ", asymmetric") + (", dynamic" if arguments.dynamic else ", static")
    return f"{arguments.num_bits}-bit {arguments.type} (per {arguments.strategy or 'tensor'}{extras})"


def _unsupported(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: the weights are quantized as {found}; supported are {_SUPPORTED}. Use one of these, the unquantized "
        "model, or a GGUF file of it"
    )
