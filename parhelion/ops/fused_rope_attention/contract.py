"""``fused_rope_attention``: head norms, rotation, the write to the KV cache, and attention to what is there then, whose
output may be quantized.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from parhelion.ops.check import ANY_STEPS
from parhelion.ops.contract import Contract, Output, Tensors, Traffic, randn, wide
from parhelion.ops.fused_qk_norm_rope.contract import FusedQkNormRope
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.contract import PagedAttention
from parhelion.ops.paged_attention.sample import BOUND, places, sample_rows, sampled_lens
from parhelion.ops.quantize import per_token_quantized
from parhelion.ops.rope_and_cache.contract import RopeAndCache, rotary_table


@dataclass(frozen=True)
class FusedRopeAttention(Contract):
    """``fused_qk_norm_rope`` (without an ``epsilon``: ``rope_and_cache``), then ``paged_attention``.

    Inputs:
        qkv [M, (num_heads + 2 * num_kv_heads) * head_dim], positions [M] int64, slot_mapping [M] int64, kv_cache
            [num_blocks, block_size, 2 * num_kv_heads, head_dim]: see ``RopeAndCache``.
        batch: an ``AttentionBatch``. The last of a row's ``seq_len`` tokens are the step's own, at their slots.
        cos_sin [max_position, head_dim] float32 and, with an ``epsilon``, q_weight [head_dim], k_weight [head_dim].
    Outputs: out [M, num_heads * head_dim] or, with a ``quant_dtype``, its codes and their scales [M, 1] float32 (see
        ``ops/quantize.py``); kv_cache, which is written in place. A launcher may overwrite qkv.

    Attributes:
        epsilon: of the head norms; None: there are none.
        scale, sliding_window, soft_cap: see ``PagedAttention``.
        quant_dtype: that the output is quantized to with one scale a row; None: it is of ``dtype``.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    max_position: int
    scale: float
    epsilon: float | None = None
    sliding_window: int | None = None
    soft_cap: float | None = None
    dtype: torch.dtype = torch.bfloat16
    quant_dtype: torch.dtype | None = None

    name: ClassVar[str] = "fused_rope_attention"
    free: ClassVar[tuple[str, ...]] = ("max_position",)
    mutated: ClassVar[tuple[int, ...]] = (3,)
    instead: ClassVar[str] = "torch"

    def __post_init__(self) -> None:
        if self.head_dim & (self.head_dim - 1):
            raise ValueError(f"head_dim = {self.head_dim} is no power of two: rotate and attend in two calls")

    @property
    def outputs(self) -> tuple[Output, ...]:  # type: ignore[override]  # depends on quant_dtype
        # Queries and keys are rounded, then the weights, then the output. A step of FP8 is 1/16: of what is off by some
        # thousandths one in twenty crosses a border, and together they are off by more than the scales.
        out: tuple[Output, ...] = (Output("out", relative=8e-3),)
        if self.quant_dtype is not None:
            out = (Output("codes", relative=4e-2, scales=1, max_flips=ANY_STEPS), Output("scales", relative=8e-3))
        return (*out, Output("kv_cache", relative=4e-3))

    @property
    def num_weights(self) -> int:  # type: ignore[override]
        """The rotary table, and the weights of the norms if there are any."""
        return 1 if self.epsilon is None else 3

    @property
    def rope(self) -> RopeAndCache | FusedQkNormRope:
        """Its first half."""
        heads = (self.num_heads, self.num_kv_heads, self.head_dim)
        if self.epsilon is None:
            return RopeAndCache(*heads, self.block_size, self.max_position, self.dtype)
        return FusedQkNormRope(*heads, self.epsilon, self.block_size, self.max_position, self.dtype)

    @property
    def attention(self) -> PagedAttention:
        """Its second half."""
        heads = (self.num_heads, self.num_kv_heads, self.head_dim)
        return PagedAttention(*heads, self.block_size, self.scale, self.sliding_window, self.soft_cap, self.dtype)

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        """The rows of ``PagedAttention``; the step's own tokens are not in the cache yet."""
        query_lens, seq_lens = sampled_lens(num_tokens)
        shape = (self.num_heads + 2 * self.num_kv_heads, self.num_kv_heads, self.head_dim, self.block_size)
        qkv, kv_cache, batch = sample_rows(query_lens, seq_lens, shape, self.dtype, device, generator, BOUND)
        positions, slots = places(batch, num_tokens, self.block_size)
        table = rotary_table(self.max_position, self.head_dim).to(device)
        weights = [randn((self.head_dim,), self.dtype, device, generator) for _ in range(self.num_weights - 1)]
        inputs: Any = (qkv, positions % self.max_position, slots, kv_cache, batch, table, *weights)
        return inputs  # type: ignore[no-any-return]

    def reference(
        self,
        qkv: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        batch: AttentionBatch,
        *weights: torch.Tensor,
        **unused: Any,
    ) -> Tensors:
        """One after the other. Reads the lengths on the host, so it cannot be captured in a graph."""
        query, kv_cache = self.rope.reference(qkv, positions, slot_mapping, kv_cache, *weights)
        return *self.quantized(self.attention.reference(query, kv_cache, batch)), kv_cache

    def quantized(self, out: torch.Tensor) -> Tensors:
        """Attention's output as this op returns it."""
        return (out,) if self.quant_dtype is None else per_token_quantized(wide(out), self.quant_dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        """Of both, less the query and the step's own keys and values, which need not be written to be read again."""
        rope, attention = self.rope.traffic(num_tokens), self.attention.traffic(num_tokens)
        again = 2 * num_tokens * (self.num_heads + self.num_kv_heads) * self.head_dim * self.dtype.itemsize
        moved = rope.bytes + attention.bytes - again
        if self.quant_dtype is not None:
            saved = self.dtype.itemsize - self.quant_dtype.itemsize
            moved -= num_tokens * (self.num_heads * self.head_dim * saved - 4)
        return Traffic(moved, rope.flops + attention.flops, attention.unit)
