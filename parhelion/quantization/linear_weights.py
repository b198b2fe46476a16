"""A linear layer's parameters under a scheme, read from wherever weights come from.

Projections that share an input are stacked into one layer, codes and scales alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from parhelion.errors import CheckpointError
from parhelion.quantization.codes import expand_block_scales, quantize_per_block, quantize_per_channel
from parhelion.quantization.scheme import UNQUANTIZED, QuantScheme
from parhelion.quantization.section import Section

_PLAIN_DTYPES = frozenset({torch.float64, torch.float32, torch.bfloat16, torch.float16})


class Weights(Protocol):
    """Tensors by Hugging Face name."""

    def get(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor of that name, [*shape], in the dtype it is kept in."""
        ...

    def get_section(self, name: str, section: Section, *shape: int) -> torch.Tensor:
        """A section of the tensor of that name, which as a whole is [*shape]."""
        ...

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        ...


@dataclass(frozen=True)
class LinearWeights:
    """The parameters of one linear layer.

    Attributes:
        weight: [N, K], codes or plain weights.
        scales: float32, [N, 1] or, by blocks, [ceil(N / block), ceil(K / block)]; None for plain weights.
        bias: [N] in the engine's dtype, or None.
        scheme: what the weight is in; ``UNQUANTIZED`` for a layer that the model's scheme leaves out.
    """

    weight: torch.Tensor
    scales: torch.Tensor | None
    bias: torch.Tensor | None
    scheme: QuantScheme


def load_linear(
    weights: Weights,
    scheme: QuantScheme,
    names: tuple[str, ...],
    rows: tuple[int, ...],
    in_features: int,
    bias: bool,
    dtype: torch.dtype,
    device: torch.device,
    sections: tuple[Section, ...] = (),
) -> LinearWeights:
    """One layer out of one or several projections of the same input.

    A section of rows is quantized by itself, since each has a scale of its own. A section of columns keeps the scales
    of whole rows: a weight that is quantized here is read whole and then cut.

    Args:
        weights: where tensors come from.
        scheme: the model's.
        names: the projections, such as ``model.layers.0.self_attn.q_proj``, in the order they are stacked in.
        rows: output features of each, as stored.
        in_features: K, as stored.
        bias: whether they have biases.
        dtype: the engine's, of plain weights and of biases.
        device: where the parameters shall lie.
        sections: what is kept of each projection: rows with their scales and biases, or columns. Empty: everything.
            The sum over all ranks' columns has a bias once: the rank of the first columns has it, the others zeros.

    Raises:
        CheckpointError: a tensor is missing, of another shape or in another form than the scheme says, or projections
            that must be stacked are not quantized alike.
    """
    kept: Sequence[Section | None] = sections or [None] * len(names)
    parts = [
        _Part(weights, name, count, in_features, device, section)
        for name, count, section in zip(names, rows, kept, strict=True)
    ]
    own = _common_scheme(scheme, names)
    stacked_bias = _cat([part.bias(dtype) for part in parts]) if bias else None
    if not own.is_quantized:
        return LinearWeights(_cat([part.plain(scheme).to(dtype) for part in parts]), None, stacked_bias, own)
    _check_blocks_stack(own, names, tuple(part.kept_rows for part in parts))
    read: Callable[[_Part], tuple[torch.Tensor, torch.Tensor]]
    read = (lambda part: part.stored(own)) if own.source == "checkpoint" else (lambda part: part.made(own))
    codes, scales = zip(*map(read, parts), strict=True)
    return LinearWeights(_cat(codes), _cat(scales), stacked_bias, own)


def weights_of(name: str, weight: torch.Tensor, scheme: QuantScheme, dtype: torch.dtype) -> LinearWeights:
    """A layer of a weight that has been read already, such as a table that two layers share.

    Args:
        name: the layer's, for messages.
        weight: [N, K], of floats, where the parameters shall lie.
        scheme: with scales made here, or ``UNQUANTIZED``.
        dtype: the engine's, of a plain weight.

    Raises:
        CheckpointError: the weight is no plain one, or holds what cannot be quantized.
    """
    weight = _checked_plain(name, weight, UNQUANTIZED)
    if not scheme.is_quantized:
        return LinearWeights(weight.to(dtype), None, None, scheme)
    return LinearWeights(*_made(name, weight, scheme), None, scheme)


def dequantize(linear: LinearWeights) -> torch.Tensor:
    """The weight that a layer stands for, [N, K] float32."""
    values = linear.weight.float()
    if linear.scales is None:
        return values
    if linear.scheme.block is None:
        return values * linear.scales
    return values * expand_block_scales(linear.scales, linear.scheme.block, *values.shape)


@dataclass(frozen=True)
class _Part:
    """One projection: where its tensors are and how large they must be."""

    weights: Weights
    name: str
    rows: int
    in_features: int
    device: torch.device
    section: Section | None

    @property
    def kept_rows(self) -> int:
        """Output features of the section."""
        return self.rows if self.section is None or self.section.dim else self.section.size

    def bias(self, dtype: torch.dtype) -> torch.Tensor:
        if self.section is not None and self.section.dim and self.section.start:
            return torch.zeros(self.rows, dtype=dtype, device=self.device)
        section = None if self.section is None or self.section.dim else self.section
        return self._get(f"{self.name}.bias", section, self.rows).to(device=self.device, dtype=dtype)

    def plain(self, scheme: QuantScheme) -> torch.Tensor:
        """The float weight, [rows, in_features] or the section of it."""
        return _checked_plain(self.name, self._weight(self.section), scheme)

    def stored(self, scheme: QuantScheme) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales as the checkpoint has them, of the section."""
        scale_name = f"{self.name}.{scheme.scale_name}"
        codes = self._weight(self.section)
        if codes.dtype != scheme.weight_dtype or not self.weights.has(scale_name):
            raise CheckpointError(
                f"{self.name} is stored as {_name(codes.dtype)}, and {scale_name} is "
                f"{'there' if self.weights.has(scale_name) else 'missing'}, but {_says(scheme)} codes in "
                f"{_name(scheme.weight_dtype)} with scales: fetch config.json and the weights again"
            )
        section = self._scale_section(scheme)
        scales = self._get(scale_name, section, *self._scale_shape(scheme)).to(self.device).float()
        if scheme.scale_per_tensor:
            scales = scales.expand(self.kept_rows, 1).contiguous()
        return codes, scales

    def made(self, scheme: QuantScheme) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and scales made of the float weight; those of a section are the whole weight's."""
        assert scheme.block is None or self.section is None  # blocks may not end where sections do
        columns = self.section if self.section is not None and self.section.dim else None
        weight = _checked_plain(self.name, self._weight(None if columns else self.section), UNQUANTIZED)
        codes, scales = _made(self.name, weight, scheme)
        return (codes if columns is None else columns.of(codes)), scales

    def _weight(self, section: Section | None) -> torch.Tensor:
        return self._get(f"{self.name}.weight", section, self.rows, self.in_features).to(self.device)

    def _get(self, name: str, section: Section | None, *shape: int) -> torch.Tensor:
        return self.weights.get(name, *shape) if section is None else self.weights.get_section(name, section, *shape)

    def _scale_section(self, scheme: QuantScheme) -> Section | None:
        """What of the stored scales belongs to the section; None is all of them."""
        if self.section is None or scheme.scale_per_tensor:
            return None
        if scheme.block is not None:
            return self.section.in_blocks(scheme.block)
        return None if self.section.dim else self.section

    def _scale_shape(self, scheme: QuantScheme) -> tuple[int, ...]:
        if scheme.block is not None:
            return (-(-self.rows // scheme.block), -(-self.in_features // scheme.block))
        return (1,) if scheme.scale_per_tensor else (self.rows, 1)


def _made(name: str, weight: torch.Tensor, scheme: QuantScheme) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of a plain weight."""
    assert scheme.weight_dtype is not None  # only quantized schemes come here
    if scheme.block is None:
        codes, scales = quantize_per_channel(weight, scheme.weight_dtype)
    else:
        codes, scales = quantize_per_block(weight, scheme.block, scheme.weight_dtype)
    if not bool(scales.isfinite().all()):
        raise CheckpointError(
            f"{name}.weight holds values that are not finite, which cannot be quantized: fetch the weights again, or "
            "load them without quantization"
        )
    return codes, scales


def _checked_plain(name: str, weight: torch.Tensor, scheme: QuantScheme) -> torch.Tensor:
    if weight.dtype not in _PLAIN_DTYPES:
        raise CheckpointError(
            f"{name}.weight is stored as {_name(weight.dtype)}, but {_says(scheme)} a plain weight: config.json and "
            "the weights do not belong together; fetch both again"
        )
    return weight


def _says(scheme: QuantScheme) -> str:
    return f"the configuration ({scheme.name}) implies"


def _common_scheme(scheme: QuantScheme, names: tuple[str, ...]) -> QuantScheme:
    """The scheme, or ``UNQUANTIZED`` where it leaves these projections out."""
    applies = {name: scheme.applies_to(name) for name in names}
    if len(set(applies.values())) > 1:
        left_out = ", ".join(name for name, quantized in applies.items() if not quantized)
        raise CheckpointError(
            f"{', '.join(names)} are computed as one layer, but {scheme.name} leaves out only {left_out}: quantize "
            "the model so that all or none of them are left out"
        )
    return scheme if applies[names[0]] else UNQUANTIZED


def _check_blocks_stack(scheme: QuantScheme, names: tuple[str, ...], rows: tuple[int, ...]) -> None:
    """Scales by block stack only where every projection but the last ends with a whole block."""
    for name, count in list(zip(names, rows, strict=True))[:-1]:
        if scheme.block is not None and count % scheme.block:
            raise CheckpointError(
                f"{name} has {count} rows, which is no multiple of the {scheme.block} rows that share a scale, so it "
                f"cannot be stacked with {', '.join(names)}: quantize the model per channel"
            )


def _cat(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stacked along the first dimension; codes as bytes, since not every device concatenates 8-bit floats."""
    if len(parts) == 1:
        return parts[0].contiguous()
    dtype = parts[0].dtype
    if dtype.itemsize > 1:
        return torch.cat(list(parts))
    return torch.cat([part.view(torch.uint8) for part in parts]).view(dtype)


def _name(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")
