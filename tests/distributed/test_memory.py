"""What a rank holds: sums that can be checked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parhelion.distributed.layouts import Layout
from parhelion.distributed.memory import rank_memory, why_no_room
from parhelion.distributed.model_size import HeadSize, ModelSize
from parhelion.quantization import FP8_BLOCK, UNQUANTIZED, choose_head_scheme
from tests.distributed.sample import QWEN3_8B, qwen3_8b

GIB = 1 << 30


def weights(model: ModelSize, layout: Layout) -> int:
    return rank_memory(model, layout, 80 * GIB, 4096, 256).weights


def test_an_unquantized_model_holds_two_bytes_a_parameter() -> None:
    # Qwen3-8B has 8,190,735,360 parameters (its model card: 8.2B).
    assert weights(QWEN3_8B, Layout(1)) == pytest.approx(2 * 8_190_735_360, rel=1e-4)


def test_a_quantized_head_is_half_a_table_and_beside_the_embedding_even_if_that_is_tied() -> None:
    table, codes = 2 * 151936 * 4096, 151936 * (4096 + 4)
    heads = [replace(QWEN3_8B, tied=tied, head_quantization=choose_head_scheme("fp8")) for tied in (False, True)]
    assert [weights(each, Layout(1)) for each in heads] == [weights(QWEN3_8B, Layout(1)) - table + codes] * 2
    assert [each.weight_bytes - each.num_layers * each.layer_bytes for each in heads] == [table + codes] * 2
    halves = [weights(each, Layout(2)) for each in (QWEN3_8B, heads[0])]
    assert halves[0] - halves[1] == (table - codes) // 2
    # The first stage has the embedding as it was, and a layer less, since the last one reads less of the head.
    assert weights(heads[0], Layout(1, 2)) == weights(QWEN3_8B, Layout(1, 2)) - QWEN3_8B.layer_bytes


def test_a_tied_table_is_held_once() -> None:
    table = 2 * 151936 * 4096
    tied = replace(QWEN3_8B, tied=True)
    assert weights(QWEN3_8B, Layout(1)) - weights(tied, Layout(1)) == table
    # The first and the last stage both need it.
    assert weights(QWEN3_8B, Layout(1, 2)) == weights(tied, Layout(1, 2))


@pytest.mark.parametrize("tp", [2, 4, 8])
def test_ranks_share_weights_and_keys(tp: int) -> None:
    whole, part = (rank_memory(qwen3_8b(), Layout(each), 80 * GIB, 4096, 256) for each in (1, tp))
    assert part.weights == pytest.approx(whole.weights / tp, rel=2e-3)
    assert part.kv_bytes_per_token * tp == whole.kv_bytes_per_token


def test_kv_heads_are_replicated_beyond_their_number() -> None:
    eight, sixteen = (rank_memory(QWEN3_8B, Layout(tp), 80 * GIB, 4096, 256) for tp in (8, 16))
    assert eight.kv_bytes_per_token == sixteen.kv_bytes_per_token == 2 * 36 * 128 * 2


@pytest.mark.parametrize("pp", [2, 4, 6, 36])
def test_stages_share_layers_as_the_engine_divides_them_and_the_fullest_one_counts(pp: int) -> None:
    found = rank_memory(QWEN3_8B, Layout(1, pp), 80 * GIB, 4096, 256)
    layers = [len(stage.layers) for stage in QWEN3_8B.stages(pp)]
    assert sum(layers) == 36
    assert found.kv_bytes_per_token == 2 * max(layers) * 8 * 128 * 2
    # The first stage has the embedding, and fewer layers if they do not all have equally many.
    table = QWEN3_8B.table_bytes if layers[0] == max(layers) else 0
    assert found.weights == max(layers) * QWEN3_8B.layer_bytes + table


def test_block_scales_are_few() -> None:
    per_token, per_block = weights(qwen3_8b(), Layout(1)), weights(qwen3_8b(FP8_BLOCK), Layout(1))
    assert per_block < per_token < 0.6 * weights(QWEN3_8B, Layout(1))


# Qwen3-0.6B has 596,049,920 parameters, its table once; sixteen heads divide among two ranks and not among three.
DRAFT = ModelSize("qwen3-0.6b", 28, 1024, 3072, 16, 8, 128, 151936, True, UNQUANTIZED)


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_a_draft_model_is_shared_by_the_same_ranks_and_keeps_its_keys_in_the_same_blocks(tp: int) -> None:
    plain, both = (
        rank_memory(model, Layout(tp), 80 * GIB, 4096, 256) for model in (QWEN3_8B, replace(QWEN3_8B, draft=DRAFT))
    )
    assert both.weights - plain.weights == pytest.approx(2 * 596_049_920 / tp, rel=2e-3)
    assert tp * (both.kv_bytes_per_token - plain.kv_bytes_per_token) == 2 * 28 * 8 * 128 * 2
    assert both.kv_cache == pytest.approx(plain.kv_cache - 0.9 * (both.weights - plain.weights), rel=1e-9)


def test_a_draft_model_is_whole_beside_the_last_stage_and_a_head_brings_the_embedding_there() -> None:
    head = HeadSize("head", 1, 4096, 12288, 32, 8, 128, 32000, True, UNQUANTIZED, fused=3 * 4096)
    table = QWEN3_8B.table_bytes
    plain, drafted, headed = (
        rank_memory(replace(QWEN3_8B, draft=draft), Layout(1, 36), 80 * GIB, 4096, 256) for draft in (None, DRAFT, head)
    )
    assert plain.weights == QWEN3_8B.layer_bytes + table, "a layer with the embedding, or with the output head"
    assert drafted.weights - plain.weights == DRAFT.weight_bytes
    assert headed.weights - plain.weights == head.weight_bytes + table
    # The first of two stages has so many more layers than the last that it has less room, even beside a head.
    two = [rank_memory(replace(QWEN3_8B, draft=draft), Layout(1, 2), 80 * GIB, 4096, 256) for draft in (None, head)]
    assert two[0] == two[1]


def test_a_draft_model_that_does_not_divide_is_whole_on_every_rank() -> None:
    odd = replace(DRAFT, num_heads=17, num_kv_heads=17)
    plain, both = (
        rank_memory(model, Layout(2), 80 * GIB, 4096, 256) for model in (QWEN3_8B, replace(QWEN3_8B, draft=odd))
    )
    assert both.weights - plain.weights == odd.weight_bytes
    assert both.kv_bytes_per_token - plain.kv_bytes_per_token == odd.kv_bytes_per_token


def test_a_head_has_its_vocabulary_and_what_makes_features() -> None:
    # The tensors of a head for a hidden size of 4,096 that can guess 32,000 tokens and reads three hidden states.
    head = HeadSize("head", 1, 4096, 14336, 32, 8, 128, 32000, True, UNQUANTIZED, fused=3 * 4096)
    features, vocabulary = 4096 * 3 * 4096, 32000 * 4096
    attention = (4096 + 2 * 1024) * 2 * 4096 + 4096 * 4096
    feed_forward = 3 * 14336 * 4096
    assert head.weight_bytes == pytest.approx(2 * (features + vocabulary + attention + feed_forward), rel=1e-3)
    part = head.shard(2).weight_bytes
    assert part == pytest.approx(2 * features + (vocabulary + attention + feed_forward), rel=1e-3)


def test_everything_fits_the_device() -> None:
    memory = rank_memory(QWEN3_8B, Layout(1), 24 * GIB, 4096, 256)
    held = memory.weights + memory.kv_cache + memory.activations + memory.graphs + memory.reserved
    assert memory.kv_cache > 0
    assert held <= memory.total


def test_too_little_memory_is_said_in_words() -> None:
    memory = rank_memory(QWEN3_8B, Layout(1), 16 * GIB, 4096, 256)
    assert memory.kv_cache == 0
    assert "15.3 GiB of weights" in (why_no_room(memory, 640) or "")
    assert why_no_room(rank_memory(QWEN3_8B, Layout(1), 80 * GIB, 4096, 256), 640) is None
