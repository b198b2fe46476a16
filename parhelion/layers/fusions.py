"""The fusions that plans are made of: a quantization swallowed by the norm or the activation before it; on a GPU also
rotation, the write to the cache and attention in one, with the quantization of what it makes, the sum over the ranks
and the norm behind it, the activation between two products, and for a single token all that stands before and behind a
product, or for a few the block as a whole.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from parhelion.layers.program import PLAIN, Chain, Fusion, Plan
from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.contract import Contract
from parhelion.ops.decoder_block import DecoderBlock
from parhelion.ops.dynamic_per_token_scaled_fp8_quant import DynamicPerTokenScaledFp8Quant
from parhelion.ops.dynamic_per_token_scaled_int8_quant import DynamicPerTokenScaledInt8Quant
from parhelion.ops.fused_add_rms_norm import FusedAddRmsNorm
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.per_token_group_fp8_quant import PerTokenGroupFp8Quant
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm_dynamic_per_token_quant import RmsNormDynamicPerTokenQuant
from parhelion.ops.rms_norm_per_block_quant import RmsNormPerBlockQuant
from parhelion.ops.rope_and_cache import RopeAndCache
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.ops.scaled_mm_of_activations import ScaledMmOfActivations
from parhelion.ops.scaled_mm_silu_and_mul import ScaledMmSiluAndMul
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.ops.silu_and_mul_dynamic_per_token_quant import SiluAndMulDynamicPerTokenQuant
from parhelion.ops.silu_and_mul_per_block_quant import SiluAndMulPerBlockQuant
from parhelion.ops.weight_only_mv import WeightOnlyMv

Norm = RmsNorm | FusedAddRmsNorm
PerToken = DynamicPerTokenScaledFp8Quant | DynamicPerTokenScaledInt8Quant


def _norm_per_token(norm: Norm, quantize: PerToken) -> Contract:
    return RmsNormDynamicPerTokenQuant(
        norm.hidden_size, norm.epsilon, norm.dtype, quantize.quant_dtype, isinstance(norm, FusedAddRmsNorm)
    )


def _norm_per_block(norm: Norm, quantize: PerTokenGroupFp8Quant) -> Contract:
    return RmsNormPerBlockQuant(
        norm.hidden_size,
        norm.epsilon,
        norm.dtype,
        quantize.group_size,
        quantize.scale_format,
        isinstance(norm, FusedAddRmsNorm),
    )


def _silu_per_token(silu: SiluAndMul, quantize: PerToken) -> Contract:
    return SiluAndMulDynamicPerTokenQuant(silu.intermediate_size, silu.dtype, quantize.quant_dtype)


def _silu_per_block(silu: SiluAndMul, quantize: PerTokenGroupFp8Quant) -> Contract:
    return SiluAndMulPerBlockQuant(silu.intermediate_size, silu.dtype, quantize.group_size, quantize.scale_format)


def _summed_norm(total: AllReduce, norm: FusedAddRmsNorm) -> Contract:
    return AllReduceRmsNorm(norm.hidden_size, total.num_ranks, norm.epsilon, norm.dtype)


def _summed_quantizing_norm(total: AllReduce, norm: RmsNormDynamicPerTokenQuant) -> Contract | None:
    if not norm.add_residual:
        return None
    return AllReduceRmsNorm(norm.hidden_size, total.num_ranks, norm.epsilon, norm.dtype, norm.quant_dtype)


def _rope_attention(rope: RopeAndCache | FusedQkNormRope, attention: PagedAttention) -> Contract | None:
    a = attention
    if a.head_dim & (a.head_dim - 1):
        return None
    return FusedRopeAttention(
        a.num_heads,
        a.num_kv_heads,
        a.head_dim,
        a.block_size,
        rope.max_position,
        a.scale,
        rope.epsilon if isinstance(rope, FusedQkNormRope) else None,
        a.sliding_window,
        a.soft_cap,
        a.dtype,
    )


def _quantized_attention(attention: FusedRopeAttention, quantize: PerToken) -> Contract:
    return replace(attention, quant_dtype=quantize.quant_dtype)


def _gated_products(
    gate_up: ScaledMm, silu: SiluAndMulDynamicPerTokenQuant, down: ScaledMm
) -> tuple[Contract, Contract] | None:
    if gate_up.bias or down.bias or gate_up.quant_dtype != down.quant_dtype:
        return None
    return (
        ScaledMmSiluAndMul(gate_up.in_features, silu.intermediate_size, gate_up.quant_dtype, gate_up.dtype),
        ScaledMmOfActivations(down.in_features, down.out_features, down.quant_dtype, down.dtype),
    )


def _unquantized(quantize: PerToken, scaled_mm: ScaledMm) -> Contract | None:
    if scaled_mm.bias:
        return None
    return WeightOnlyMv(scaled_mm.in_features, scaled_mm.out_features, scaled_mm.quant_dtype, scaled_mm.dtype)


def _of_normed(norm: Norm, product: WeightOnlyMv) -> Contract:
    return replace(product, epsilon=norm.epsilon, add_residual=isinstance(norm, FusedAddRmsNorm))


def _gated(product: WeightOnlyMv, silu: SiluAndMul) -> Contract:
    return replace(product, out_features=silu.intermediate_size, gated=True)


def _whole_block(
    qkv: WeightOnlyMv,
    attention: FusedRopeAttention,
    out: WeightOnlyMv,
    gate_up: WeightOnlyMv,
    down: WeightOnlyMv,
) -> tuple[Contract] | None:
    if qkv.epsilon is None or not qkv.add_residual:
        return None
    block = DecoderBlock(
        qkv.in_features,
        down.in_features,
        attention.num_heads,
        attention.num_kv_heads,
        attention.head_dim,
        attention.block_size,
        attention.max_position,
        attention.scale,
        qkv.epsilon,
        attention.epsilon,
        qkv.quant_dtype,
        qkv.dtype,
    )
    # What a block cannot say, such as a window, its parts do not have.
    return (block,) if block.has_program and block.parts == (qkv, attention, out, gate_up, down) else None


_PER_TOKEN: tuple[type[Contract], ...] = (DynamicPerTokenScaledFp8Quant, DynamicPerTokenScaledInt8Quant)

FUSED: Plan = (
    *(Fusion(norm, quant, _norm_per_token) for norm in (RmsNorm, FusedAddRmsNorm) for quant in _PER_TOKEN),
    *(Fusion(norm, PerTokenGroupFp8Quant, _norm_per_block) for norm in (RmsNorm, FusedAddRmsNorm)),
    *(Fusion(SiluAndMul, quant, _silu_per_token) for quant in _PER_TOKEN),
    Fusion(SiluAndMul, PerTokenGroupFp8Quant, _silu_per_block),
)
"""Everything that can be fused on every device."""

FUSED_ON_GPU: Plan = (
    *FUSED,
    *(Fusion(rope, PagedAttention, _rope_attention) for rope in (RopeAndCache, FusedQkNormRope)),
    *(Fusion(FusedRopeAttention, quant, _quantized_attention) for quant in _PER_TOKEN),
    Fusion(AllReduce, FusedAddRmsNorm, _summed_norm),
    Fusion(AllReduce, RmsNormDynamicPerTokenQuant, _summed_quantizing_norm),
)
"""Everything that can be fused on a GPU."""

FEWER_LAUNCHES: Plan = (
    *FUSED_ON_GPU,
    Chain((ScaledMm, SiluAndMulDynamicPerTokenQuant, ScaledMm), (2, 1), _gated_products),
)
"""The same, and a feed-forward of quantized layers in two launches: it computes more than once what few tokens have
little of.
"""

SINGLE_TOKEN: Plan = (
    *(Fusion(quant, ScaledMm, _unquantized) for quant in _PER_TOKEN),
    *(Fusion(norm, WeightOnlyMv, _of_normed) for norm in (RmsNorm, FusedAddRmsNorm)),
    Fusion(WeightOnlyMv, SiluAndMul, _gated),
    *FUSED_ON_GPU,
)
"""A layer of quantized weights in five launches, its activations not quantized: for one token a product is a pass over
the weight, and what stands before it is so little that every program computes it for itself.
"""

SINGLE_LAUNCH: Plan = (
    *SINGLE_TOKEN,
    Chain((WeightOnlyMv, FusedRopeAttention, WeightOnlyMv, WeightOnlyMv, WeightOnlyMv), (5,), _whole_block),
)
"""The same, and the five of a layer of FP8 weights as one, which begins to read each product's weight while the one
before is computed: for a token, or a few of as many rows. A model's first layer adds no hidden: it keeps its five,
which are for a single token, so ``LayerPrograms`` computes it under another plan.
"""

ON_GPU: tuple[Plan, ...] = (FUSED_ON_GPU, FEWER_LAUNCHES, SINGLE_TOKEN, SINGLE_LAUNCH)
"""Sets of fusions that a GPU may serve with."""


def plans(name: str, device: torch.device, exchanges: bool = True) -> tuple[Plan, ...]:
    """Sets of fusions that may serve, of which the first does unless a pack knows that another is quicker.

    Args:
        name: ``plain``: one op a launch. ``fused``: everything that can be fused on the device.
        device: where.
        exchanges: ranks that share the layers can hand each other rows inside kernels. Else their sums stay apart from
            the norms behind them, which are tile programs all the same.
    """
    found = {"plain": (PLAIN,), "fused": (FUSED,) if device.type == "cpu" else ON_GPU}[name]
    return found if exchanges else tuple(map(_without_sums, found))


def _without_sums(plan: Plan) -> Plan:
    return tuple(each for each in plan if not (isinstance(each, Fusion) and each.first is AllReduce))
