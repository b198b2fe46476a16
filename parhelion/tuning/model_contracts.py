"""Which contracts a model needs: those that its layers call, under every quantization and plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

import torch

from parhelion.errors import ConfigError
from parhelion.layers.decoder_layer import LayerShape, LayerWeights, layer_calls
from parhelion.layers.fusions import FUSED, ON_GPU
from parhelion.layers.program import PLAIN, Call, cover
from parhelion.layers.vocabulary import head_calls
from parhelion.ops.argmax import Argmax
from parhelion.ops.contract import Contract
from parhelion.ops.embedding import Embedding
from parhelion.ops.registry import ops
from parhelion.ops.top_k_top_p_sampling import TopKTopPSampling
from parhelion.ops.weight_only_mm import WeightOnlyMm
from parhelion.quantization import (
    FP8_BLOCK,
    FP8_PER_TOKEN,
    INT8_PER_TOKEN,
    UNQUANTIZED,
    LinearWeights,
    QuantScheme,
)
from parhelion.tuning.model_shapes import ModelShape

SCHEMES = (UNQUANTIZED, FP8_PER_TOKEN, FP8_BLOCK, INT8_PER_TOKEN)

BLOCK_SIZE = 16
"""Tokens of a KV block."""

MAX_POSITION = 4096
"""Positions of the rotary table; programs do not depend on it."""


def scheme(name: str) -> QuantScheme:
    """A quantization scheme by name.

    Raises:
        ConfigError: there is none; the message lists those that exist.
    """
    for each in SCHEMES:
        if each.name == name:
            return each
    known = ", ".join(each.name for each in SCHEMES)
    raise ConfigError(f"there is no quantization {name!r}; there are {known}")


def contracts_of(
    shape: ModelShape,
    quantization: QuantScheme,
    dtype: torch.dtype = torch.bfloat16,
    head_quantization: QuantScheme = UNQUANTIZED,
) -> list[Contract]:
    """The contracts that a model calls, each once: the first layer's, a later layer's, embedding and output head.

    The layers themselves are asked, with parameters that have shapes and no values.
    """
    found: dict[Contract, None] = {Embedding(shape.vocab_size, shape.hidden_size, dtype): None}
    head = head_calls(_linear(shape.vocab_size, shape.hidden_size, head_quantization, False), dtype)
    for calls in (*(_layer(shape, quantization, dtype, is_first) for is_first in (True, False)), head):
        for plan in (PLAIN, FUSED, *ON_GPU):
            found.update(dict.fromkeys(call.contract for call in cover(calls, plan)))
    # What is called instead on a GPU without 8-bit floats.
    if quantization.weight_dtype == torch.float8_e4m3fn and quantization.block is None:
        found.update(dict.fromkeys(WeightOnlyMm(k, n, dtype) for n, k in shape.projections))
    if head_quantization.weight_dtype == torch.float8_e4m3fn:
        found[WeightOnlyMm(shape.hidden_size, shape.vocab_size, dtype)] = None
    return list(found)


def samplers(shape: ModelShape, tp: int, dtype: torch.dtype = torch.bfloat16) -> list[Contract]:
    """What chooses tokens from logits: of the whole vocabulary and, with several ranks, of a rank's part and of the
    best of each.
    """
    of_ranks = [Argmax(shape.shard(tp).vocab_size, dtype), Argmax(tp, dtype)] if tp > 1 else []
    return [Argmax(shape.vocab_size, dtype), TopKTopPSampling(shape.vocab_size), *of_ranks]


def contracts_of_models(shapes: Iterable[ModelShape], schemes: Sequence[QuantScheme]) -> list[Contract]:
    """The contracts of several models, each once."""
    found: dict[Contract, None] = {}
    for shape in shapes:
        for each in schemes:
            if _divides(shape, each):
                found.update(dict.fromkeys(contracts_of(shape, each)))
    return list(found)


def with_uncalled_ops(contracts: Iterable[Contract]) -> list[Contract]:
    """The contracts, op by op, and the examples of those ops that have none among them (such as samplers)."""
    found = list(contracts)
    called = {contract.name for contract in found}
    found += [example for op in ops() if op.name not in called for example in op.examples]
    return sorted(found, key=lambda contract: contract.name)


def with_uncalled_kinds(contracts: Iterable[Contract]) -> list[Contract]:
    """The contracts, op by op, and those examples of ops that differ in kind from all of them."""
    found = list(contracts)
    called = {kind(contract) for contract in found}
    found += [example for op in ops() for example in op.examples if kind(example) not in called]
    return sorted(found, key=lambda contract: contract.name)


def reduced(contracts: Iterable[Contract]) -> list[Contract]:
    """The first contract of each kind, float32 left out: enough to notice when a kernel stops building for GPUs."""
    found: dict[tuple[object, ...], Contract] = {}
    for contract in contracts:
        if getattr(contract, "dtype", None) != torch.float32:
            found.setdefault(kind(contract), contract)
    return list(found.values())


def kind(contract: Contract) -> tuple[object, ...]:
    """What two contracts have in common that differ in sizes alone: the op, dtypes, formats and what is on or off."""
    values = (getattr(contract, field.name) for field in fields(contract))
    return (type(contract), *("size" if _is_size(value) else value for value in values))


def _is_size(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _divides(shape: ModelShape, quantization: QuantScheme) -> bool:
    """Whether every input of a linear layer is made of whole groups."""
    return quantization.block is None or all(k % quantization.block == 0 for _, k in shape.projections)


def _layer(shape: ModelShape, quantization: QuantScheme, dtype: torch.dtype, is_first: bool) -> list[Call]:
    dims = LayerShape(
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        epsilon=shape.rms_norm_eps,
        block_size=BLOCK_SIZE,
        max_position=MAX_POSITION,
        sliding_window=None,
        dtype=dtype,
    )
    qkv, out, gate_up, down = (_linear(n, k, quantization, False) for n, k in shape.projections)
    if shape.qkv_bias:
        qkv = _linear(*shape.projections[0], quantization, True)
    norm = _empty(shape.hidden_size)
    head_norm = _empty(shape.head_dim) if shape.qk_norm else None
    weights = LayerWeights(norm, norm, qkv, out, gate_up, down, head_norm, head_norm)
    return layer_calls(dims, weights, _empty(MAX_POSITION, shape.head_dim), is_first)


def _linear(n: int, k: int, quantization: QuantScheme, bias: bool) -> LinearWeights:
    scales = _empty(n, 1) if quantization.is_quantized else None
    return LinearWeights(_empty(n, k), scales, _empty(n) if bias else None, quantization)


def _empty(*size: int) -> torch.Tensor:
    return torch.empty(size, device="meta")
