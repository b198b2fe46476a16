"""``decoder_block``: what a block of a decoder does with a token, or with a few of as many rows, from one residual to
the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic
from parhelion.ops.fused_rope_attention.contract import FusedRopeAttention
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.quantize import FP8
from parhelion.ops.weight_only_mv.contract import WeightOnlyMv

HEAD_DIM = 128
"""That the program takes."""

PARTS = 4
"""Of K, of which a tile has a piece each."""

STEP = 512
"""Of K, that the program reads at a time at least: a multiple of it are the inputs of every product."""

MOST_HEADS = 16
"""That share a key head."""

MOST_TOKENS = 16
"""Of a launch, each of a row of its own."""

UNIT = 64
"""Rows of a weight that a program of several tokens multiplies at a time."""

ROW_HEADS = 8
"""That share a key head, where there are several tokens."""

ROW_PROGRAMS = 128
"""Of several tokens, that run at once."""

ROW_PARTS = 4
"""Parts of K that these programs divide a product into, each for some of them."""


@dataclass(frozen=True)
class DecoderBlock(Contract):
    """``weight_only_mv`` (qkv), ``fused_rope_attention``, and ``weight_only_mv`` for out, gate and up, and down.

    Inputs:
        hidden, residual [M, hidden_size] of ``dtype``: what the block before left.
        positions, slot_mapping, kv_cache, batch: see ``FusedRopeAttention``.
        input_norm [hidden_size], and codes and scales of qkv; cos_sin and, with a ``head_epsilon``, q_weight and
            k_weight: see ``FusedRopeAttention``; codes and scales of out; post_attention_norm [hidden_size], and codes
            and scales of gate and up; codes and scales of down. See ``WeightOnlyMv``.
    Outputs: hidden and residual [M, hidden_size], tensors of their own; kv_cache, which is written in place.

    What one part hands the next is rounded to ``dtype`` as where each is a launch. A program may keep more of it.

    The programs take up to ``most_tokens``, of which each is the only one of its row: token i is of row i. Rows may
    have siblings. A padding row, of length 0 and with a slot of -1, leaves anything of its own and nothing of the
    others'. The reference takes any rows.

    Attributes:
        epsilon: of the two norms of hidden_size.
        head_epsilon: of the head norms; None: there are none.
        scale: see ``PagedAttention``.
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    max_position: int
    scale: float
    epsilon: float
    head_epsilon: float | None = None
    quant_dtype: torch.dtype = FP8
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "decoder_block"
    free: ClassVar[tuple[str, ...]] = ("max_position",)
    mutated: ClassVar[tuple[int, ...]] = (4,)
    instead: ClassVar[str] = "weight_only_mv"
    single_rows: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = ("sm_90",)

    # What attention adds to the residual is off by 1e-2, as three parts may be by 4e-3, 8e-3 and 4e-3; of the sum,
    # which is rounded, it is less than half: 6e-3. Gate and up both pass that on, their product twice, and two
    # products more may be off by 4e-3: 1.5e-2. That is enough to tell: a tile's 16 outputs that are missed cost a
    # sixteenth of 4096 numbers, a step of 1024 along their K half, and a thirtieth of attention 1.3e-2 of the residual.
    outputs: ClassVar[tuple[Output, ...]] = (
        Output("hidden", relative=1.5e-2),
        Output("residual", relative=6e-3),
        Output("kv_cache", relative=4e-3),
    )

    @property
    def num_weights(self) -> int:  # type: ignore[override]  # depends on head_epsilon
        """All that the five parts have."""
        return sum(part.num_weights for part in self.parts)

    @property
    def parts(self) -> tuple[WeightOnlyMv, FusedRopeAttention, WeightOnlyMv, WeightOnlyMv, WeightOnlyMv]:
        """What it does, in order."""
        heads = (self.num_heads, self.num_kv_heads, self.head_dim)
        return (
            self._product(self.hidden_size, self.qkv_size, self.epsilon, add_residual=True),
            FusedRopeAttention(
                *heads, self.block_size, self.max_position, self.scale, self.head_epsilon, dtype=self.dtype
            ),
            self._product(self.attended_size, self.hidden_size),
            self._product(self.hidden_size, self.intermediate_size, self.epsilon, add_residual=True, gated=True),
            self._product(self.intermediate_size, self.hidden_size),
        )

    @property
    def qkv_size(self) -> int:
        """Queries, keys and values of a token."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def attended_size(self) -> int:
        """All heads of a token."""
        return self.num_heads * self.head_dim

    @property
    def has_program(self) -> bool:
        """Whether the program takes these static dimensions."""
        heads_a_key, rest = divmod(self.num_heads, self.num_kv_heads)
        return (
            (self.dtype, self.quant_dtype, self.head_dim) == (torch.bfloat16, FP8, HEAD_DIM)
            and all(depth % STEP == 0 for depth in self.depths)
            and (heads_a_key <= MOST_HEADS and rest == 0)
        )

    @property
    def most_tokens(self) -> int:
        """Up to so many tokens there are programs for."""
        return MOST_TOKENS if self.takes_rows else 1

    @property
    def takes_rows(self) -> bool:
        """Whether the program of several tokens takes these static dimensions too, laid out as it usually is: each
        program has as many outputs of every product as the others, and every row's key head a program of its own.
        """
        outputs = self.qkv_size, self.hidden_size, 2 * self.intermediate_size
        shared_out = UNIT * (ROW_PROGRAMS // ROW_PARTS)
        return (
            self.has_program
            and all(count % shared_out == 0 for count in outputs)
            and self.num_kv_heads * MOST_TOKENS <= ROW_PROGRAMS
            and self.num_heads <= ROW_HEADS * self.num_kv_heads
        )

    @property
    def depths(self) -> tuple[int, int, int, int]:
        """K of each product, in order."""
        return self.hidden_size, self.attended_size, self.hidden_size, self.intermediate_size

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        """Those of the parts: attention's rows, each product's weight. Hidden and residual are small, so that it shows
        what attention adds to them.
        """
        qkv, attention, *products = self.parts
        *added, norm, codes, scales = qkv.sample_inputs(num_tokens, device, generator)
        _, *rows = attention.sample_inputs(num_tokens, device, generator)
        inputs: list[Any] = [*(each / 8 for each in added), *rows[:4], norm, codes, scales, *rows[4:]]
        for product in products:
            inputs += product.sample_inputs(num_tokens, device, generator)[-product.num_weights :]
        return tuple(inputs)

    def reference(
        self,
        hidden: torch.Tensor,
        residual: torch.Tensor,
        positions: torch.Tensor,
        slot_mapping: torch.Tensor,
        kv_cache: torch.Tensor,
        batch: AttentionBatch,
        *weights: torch.Tensor,
        **unused: Any,
    ) -> Tensors:
        """One after the other. Reads the lengths on the host, so it cannot be captured in a graph."""
        of_qkv, of_attention, of_out, of_gate_up, of_down = self.weights_by_part(weights)
        qkv, attention, out, gate_up, down = self.parts
        projected, residual = qkv.reference(hidden, residual, *of_qkv)
        attended, kv_cache = attention.reference(projected, positions, slot_mapping, kv_cache, batch, *of_attention)
        hidden = _single(out.reference(attended, *of_out))
        activated, residual = gate_up.reference(hidden, residual, *of_gate_up)
        return _single(down.reference(activated, *of_down)), residual, kv_cache

    def weights_by_part(self, weights: Tensors) -> list[Tensors]:
        """The last inputs, each part's together."""
        found, first = [], 0
        for part in self.parts:
            found.append(tuple(weights[first : first + part.num_weights]))
            first += part.num_weights
        return found

    def traffic(self, num_tokens: int) -> Traffic:
        """Of the parts, less what one hands the next, which need not be written to be read again. Nearly all of it is
        products of FP8 codes.
        """
        between = self.qkv_size + self.attended_size + self.intermediate_size + 2 * self.hidden_size
        parts = [part.traffic(num_tokens) for part in self.parts]
        moved = sum(part.bytes for part in parts) - 2 * num_tokens * between * self.dtype.itemsize
        return Traffic(moved, sum(part.flops for part in parts), "float8")

    def _product(
        self,
        in_features: int,
        out_features: int,
        epsilon: float | None = None,
        add_residual: bool = False,
        gated: bool = False,
    ) -> WeightOnlyMv:
        return WeightOnlyMv(in_features, out_features, self.quant_dtype, self.dtype, epsilon, add_residual, gated)


def _single(result: torch.Tensor | Tensors) -> torch.Tensor:
    assert isinstance(result, torch.Tensor)
    return result
