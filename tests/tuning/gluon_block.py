"""A Gluon module as ``decoder_block`` has one, whose kernels compute next to nothing: warps of their own load a few
numbers of a weight into shared memory, and the others add them to hidden. The rest of the arguments are there to be
passed.
"""

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.hopper import mbarrier


@gluon.jit
def _produce(buffer, full, weight, SIZE: gl.constexpr, WARPS: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    at = gl.arange(0, SIZE, layout=layout)
    buffer.store(gl.load(weight + at).to(gl.float32))
    gl.barrier()
    mbarrier.arrive(full, count=1)


@gluon.jit
def _consume(buffer, full, hidden, out, SIZE: gl.constexpr, WARPS: gl.constexpr):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [WARPS], [0])
    at = gl.arange(0, SIZE, layout=layout)
    mbarrier.wait(full, 0)
    gl.store(out + at, (gl.load(hidden + at).to(gl.float32) + buffer.load(layout)).to(gl.bfloat16))


@gluon.jit
def _gluon_decoder_block(
    hidden, residual, positions, slot_mapping, kv_cache, block_table, seq_lens,
    input_norm, qkv, qkv_scales, cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up, gate_up_scales,
    down, down_scales, new_hidden, new_residual, scratch, counters,
    EPSILON: gl.constexpr, HEAD_EPSILON: gl.constexpr, scale, TILE_K: gl.constexpr, PRODUCERS: gl.constexpr,
):  # fmt: skip
    buffer = gl.allocate_shared_memory(gl.float32, [TILE_K], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(full, count=1)
    gl.barrier()
    gl.warp_specialize(
        [
            (_consume, (buffer, full, hidden, new_hidden, TILE_K, 4)),
            (_produce, (buffer, full, input_norm, TILE_K, PRODUCERS)),
        ],
        [PRODUCERS],
        [64],
    )


@gluon.jit
def _gluon_decoder_rows(
    hidden, residual, positions, slot_mapping, kv_cache, block_table, seq_lens, row_slots,
    input_norm, qkv, qkv_scales, cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up, gate_up_scales,
    down, down_scales, new_hidden, new_residual, scratch, counters, num_tokens, table_stride,
    EPSILON: gl.constexpr, HEAD_EPSILON: gl.constexpr, scale, TOKENS: gl.constexpr, TILE_K: gl.constexpr,
    WARPS: gl.constexpr, PRODUCERS: gl.constexpr,
):  # fmt: skip
    buffer = gl.allocate_shared_memory(gl.float32, [TILE_K], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(full, count=1)
    gl.barrier()
    row = gl.load(block_table + gl.minimum(gl.program_id(0), num_tokens - 1) * table_stride)
    gl.warp_specialize(
        [
            (_consume, (buffer, full, hidden + row * TOKENS, new_hidden, TILE_K, WARPS)),
            (_produce, (buffer, full, input_norm, TILE_K, PRODUCERS)),
        ],
        [PRODUCERS],
        [64],
    )


def decoder_block(
    hidden, residual, positions, slot_mapping, kv_cache, block_table, seq_lens,
    input_norm, qkv, qkv_scales, cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up, gate_up_scales,
    down, down_scales, new_hidden, new_residual, scratch, counters,
    epsilon, head_epsilon, scale, hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size, block_size,
    num_programs, tile_k, ring, in_flight, keys_a_program,
    producer_warps, programmatic, *, _launcher,
):  # fmt: skip
    _launcher(
        _gluon_decoder_block, (num_programs,),
        hidden, residual, positions, slot_mapping, kv_cache, block_table, seq_lens,
        input_norm, qkv, qkv_scales, cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up, gate_up_scales,
        down, down_scales, new_hidden, new_residual, scratch, counters,
        epsilon, head_epsilon, scale, tile_k, producer_warps, num_warps=4,
    )  # fmt: skip


def decoder_rows(
    hidden, residual, positions, slot_mapping, kv_cache, block_table, seq_lens, row_slots,
    input_norm, qkv, qkv_scales, cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up, gate_up_scales,
    down, down_scales, new_hidden, new_residual, scratch, counters,
    epsilon, head_epsilon, scale, hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size, block_size,
    tokens, num_programs, tile_k, ring, in_flight, keys_a_program, parts, down_parts, rounds, warps,
    producer_warps, programmatic, *, _launcher,
):  # fmt: skip
    _launcher(
        _gluon_decoder_rows, (num_programs,),
        hidden, residual, positions, slot_mapping, kv_cache, block_table, seq_lens, row_slots,
        input_norm, qkv, qkv_scales, cos_sin, q_norm, k_norm, out, out_scales, post_norm, gate_up, gate_up_scales,
        down, down_scales, new_hidden, new_residual, scratch, counters, hidden.size(0), block_table.stride(0),
        epsilon, head_epsilon, scale, tokens, tile_k, warps, producer_warps, num_warps=warps,
    )  # fmt: skip
