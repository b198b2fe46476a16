"""``paged_attention``: causal grouped-query attention over paged keys and values, prefill and decode in one call."""

from parhelion.ops.attention.cpu import PagedAttention
from parhelion.ops.attention.metadata import AttentionMetadata, build_metadata

__all__ = ["AttentionMetadata", "PagedAttention", "build_metadata"]
