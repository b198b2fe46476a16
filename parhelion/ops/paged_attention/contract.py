"""``paged_attention``: causal attention of a mixed batch to keys and values that lie in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch

from parhelion.ops.contract import Contract, Output, Tensors, Traffic, rounded, wide
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.paged_attention.sample import BOUND, sample_rows, sampled_lens


@dataclass(frozen=True)
class PagedAttention(Contract):
    """Grouped-query attention of each token to its row's tokens up to itself.

    Inputs:
        query [M, num_heads * head_dim], rotated.
        kv_cache [num_blocks, block_size, 2 * num_kv_heads, head_dim]: keys first; the step's own are there already.
        batch: an ``AttentionBatch``.
    Output: out [M, num_heads * head_dim]; 0 for tokens that see nothing (padding).

    Attributes:
        scale: factor of the scores, usually head_dim ** -0.5.
        sliding_window: tokens that a query sees, itself included; None is all.
        soft_cap: scores s become soft_cap * tanh(s / soft_cap) (Gemma 2); None leaves them.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int
    scale: float
    sliding_window: int | None = None
    soft_cap: float | None = None
    dtype: torch.dtype = torch.bfloat16

    name: ClassVar[str] = "paged_attention"
    # The weights are rounded to bfloat16 before they meet the values, and the output once more.
    outputs: ClassVar[tuple[Output, ...]] = (Output("out", relative=6e-3),)
    instead: ClassVar[str] = "torch"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads != 0:
            raise ValueError(f"num_heads = {self.num_heads} is no multiple of num_kv_heads = {self.num_kv_heads}")

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.num_heads // self.num_kv_heads

    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        """A decode step of up to 256 rows; from there on, prompts of up to 1,024 tokens. See ``sampled_lens``."""
        query_lens, seq_lens = sampled_lens(num_tokens)
        inputs = sample_rows(
            query_lens,
            seq_lens,
            (self.num_heads, self.num_kv_heads, self.head_dim, self.block_size),
            self.dtype,
            device,
            generator,
            BOUND,
        )
        return cast(Tensors, inputs)

    def reference(self, query: torch.Tensor, kv_cache: torch.Tensor, batch: AttentionBatch, **unused: Any) -> Any:
        """Row by row. Reads the lengths on the host, so it cannot be captured in a graph."""
        heads = wide(query).unflatten(1, (self.num_heads, self.head_dim))
        out = torch.zeros_like(heads)
        starts = batch.query_start_loc.tolist()
        for row, seq_len in enumerate(batch.seq_lens.tolist()):
            first, last = starts[row], starts[row + 1]
            if seq_len == 0 or first == last:
                continue
            blocks = batch.block_table[row, : -(-seq_len // self.block_size)].long()
            key_value = wide(kv_cache[blocks].flatten(0, 1)[:seq_len])
            keys, values = key_value.to(heads.dtype).split(self.num_kv_heads, 1)
            out[first:last] = attend(heads[first:last], keys, values, self)
        return rounded(out.flatten(1), self.dtype)

    def traffic(self, num_tokens: int) -> Traffic:
        """Of the sampled batch: what each row can see of its cache is read once, and every seen pair is a product."""
        return rows_traffic(self, *sampled_lens(num_tokens))


def attend(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, c: PagedAttention) -> torch.Tensor:
    """Attention of one row, in the dtype of its inputs.

    Args:
        queries: [n, num_heads, head_dim], of the row's last n tokens.
        keys, values: [seq_len, num_kv_heads, head_dim].
    """
    scores = torch.einsum("qhgd,khd->hgqk", queries.unflatten(1, (c.num_kv_heads, c.group)), keys) * c.scale
    if c.soft_cap is not None:
        scores = c.soft_cap * torch.tanh(scores / c.soft_cap)
    key = torch.arange(len(keys), device=keys.device)
    position = key[len(keys) - len(queries) :, None]
    hidden = key > position
    if c.sliding_window is not None:
        hidden |= key <= position - c.sliding_window
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("hgqk,khd->qhgd", weights, values).flatten(1, 2)


def rows_traffic(c: PagedAttention, query_lens: list[int], seq_lens: list[int]) -> Traffic:
    """Bytes and FLOPs for rows of these lengths."""
    window = c.sliding_window if c.sliding_window is not None else max(seq_lens, default=0)
    seen = pairs = 0
    for query_len, seq_len in zip(query_lens, seq_lens, strict=True):
        lens = [min(seq_len - back, window) for back in range(query_len)]
        pairs += sum(lens)
        seen += min(seq_len, window + query_len - 1)
    elements = 2 * sum(query_lens) * c.num_heads * c.head_dim + 2 * seen * c.num_kv_heads * c.head_dim
    unit: Any = "float32" if c.dtype == torch.float32 else "bfloat16"
    return Traffic(elements * c.dtype.itemsize, 4 * pairs * c.num_heads * c.head_dim, unit)
