"""What a rank's memory holds: weights, activations, graphs, and the KV cache in what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace

from parhelion.distributed.layouts import Layout, shared_or_whole
from parhelion.distributed.model_size import ELEMENT, HeadSize, ModelSize
from parhelion.distributed.stages import Stage

RESERVED_BYTES = 512 << 20
"""What the driver's context and libraries take: an estimate."""

GRAPH_BYTES = 49_000_000
NUM_GRAPHS = 25
"""CUDA graphs of one run and what each takes: 1.22 GB for 25 of Qwen3-8B on an H100
(``benchmarks/results/h100_engine.json``), taken for every rank of every model."""

KV_FRACTION = 0.9
"""Of the memory that is free once the weights are there, what the engine gives the KV cache on a GPU."""


@dataclass(frozen=True)
class RankMemory:
    """The memory of the fullest rank, in bytes. Weights and KV cache are computed, the others estimated.

    Attributes:
        total: of the device.
        weights: with scales, norms, and the tables that this rank holds; those of a draft model too.
        activations: of the largest step.
        graphs: CUDA graphs.
        reserved: driver and libraries.
        kv_cache: what the engine would give it, block by block; 0 if nothing is left.
        kv_bytes_per_token: of one token on this rank, a draft model's included.
    """

    total: int
    weights: int
    activations: int
    graphs: int
    reserved: int
    kv_cache: int
    kv_bytes_per_token: int

    @property
    def kv_tokens(self) -> int:
        """Tokens that the cache of a replica holds."""
        return self.kv_cache // self.kv_bytes_per_token

    def num_seqs(self, seq_len: int) -> int:
        """Requests of that length that fit at once."""
        return self.kv_tokens // seq_len


def rank_memory(model: ModelSize, layout: Layout, total: int, max_tokens: int, max_seqs: int) -> RankMemory:
    """Of the rank with room for the fewest tokens, as whose cache all others are.

    Args:
        total: bytes of the device.
        max_tokens: of the largest step.
        max_seqs: that run at once.

    Raises:
        ConfigError: there are more stages than layers.
    """
    sizes = total, max_tokens, max_seqs
    # Stages that are neither the first nor the last hold nothing but layers, of which one before the last has the most.
    numbers = {0, max(0, layout.pp - 2), layout.pp - 1}
    stages = model.stages(layout.pp)
    found = [_stage_memory(model, layout.tp, stages[number], *sizes) for number in numbers]
    return min(found, key=lambda each: (each.kv_tokens, -each.weights))


def _stage_memory(model: ModelSize, tp: int, stage: Stage, total: int, max_tokens: int, max_seqs: int) -> RankMemory:
    """Of a rank of a stage. A draft model is beside the last one, and a head brings the embedding's table there."""
    shard = replace(model.shard(tp), num_layers=len(stage.layers))
    draft = model.draft if stage.is_last else None
    weights = shard.num_layers * shard.layer_bytes + _table_bytes(shard, stage, isinstance(draft, HeadSize))
    kv_bytes = shard.kv_bytes_per_token
    if draft is not None:
        part = shared_or_whole(draft, tp)
        weights += part.weight_bytes
        kv_bytes += part.kv_bytes_per_token
    activations = _activation_bytes(shard, max_tokens, max_seqs if stage.is_last else 0, tp)
    graphs = NUM_GRAPHS * GRAPH_BYTES
    free = total - RESERVED_BYTES - weights
    kv_cache = max(0, min(int(KV_FRACTION * free), free - activations - graphs))
    return RankMemory(total, weights, activations, graphs, RESERVED_BYTES, kv_cache, kv_bytes)


def why_no_room(memory: RankMemory, seq_len: int) -> str | None:
    """Why a rank cannot serve a request of that length; None if it can."""
    if memory.num_seqs(seq_len) >= 1:
        return None
    return (
        f"of {_gib(memory.total)} GiB a rank, {_gib(memory.weights)} GiB of weights and "
        f"{_gib(memory.activations + memory.graphs)} GiB of activations and graphs leave room for {memory.kv_tokens} "
        f"tokens of KV cache, and a request has {seq_len}"
    )


def _table_bytes(shard: ModelSize, stage: Stage, needs_table: bool) -> int:
    """Of the embedding, in the first stage and where it is needed, and of the output head, in the last; or of both,
    which may be one.
    """
    has_table = stage.is_first or needs_table
    shared = has_table and stage.is_last and shard.shares_table
    return has_table * shard.table_bytes + (stage.is_last and not shared) * shard.head_bytes


def _gib(count: int) -> str:
    return f"{count / (1 << 30):.1f}"


def _activation_bytes(shard: ModelSize, max_tokens: int, max_seqs: int, tp: int) -> int:
    """Hidden, residual and normed states, the largest of what lies between two of them, and the logits of all
    requests, once in bfloat16 and once in float32, over the whole vocabulary."""
    attended = shard.num_heads * shard.head_dim
    between = max(2 * attended + 2 * shard.num_kv_heads * shard.head_dim, 3 * shard.intermediate_size)
    return max_tokens * ELEMENT * (3 * shard.hidden_size + between) + max_seqs * shard.vocab_size * tp * (ELEMENT + 4)
