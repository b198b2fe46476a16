"""``fused_rope_attention``'s tile program in the interpreter, beside the reference.

Slots that hold no token yet, those of the step's own tokens among them, hold NaN: nobody may read them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from parhelion.ops.check import check
from parhelion.ops.contract import randn
from parhelion.ops.fused_rope_attention import OP, FusedRopeAttention
from parhelion.ops.fused_rope_attention.launch import launch
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.helion_provider import interpret
from parhelion.ops.launching import launch_module
from parhelion.ops.paged_attention.apart import siblings_apart
from parhelion.ops.paged_attention.sample import places, sample_rows
from parhelion.ops.quantize import FP8
from parhelion.ops.rope_and_cache.contract import rotary_table
from tests.ops.helion.awkward import generator

CPU = torch.device("cpu")

SMALL = FusedRopeAttention(4, 2, 64, 16, 128, 0.125, 1e-6, dtype=torch.float32)
"""float32: what is compared is the algorithm."""

VARIANTS = (
    SMALL,
    replace(SMALL, epsilon=None),
    replace(SMALL, num_heads=6, head_dim=32),
    replace(SMALL, num_heads=6, dtype=torch.bfloat16),
    replace(SMALL, sliding_window=20),
    replace(SMALL, sliding_window=1, soft_cap=2.0, block_size=32),
    replace(SMALL, quant_dtype=FP8),
    replace(SMALL, num_heads=6, quant_dtype=torch.int8),
)
QUANTIZED = VARIANTS[-2:]


def poisoned(contract: FusedRopeAttention, query_lens: list[int], seq_lens: list[int]) -> tuple[Any, ...]:
    c = contract
    shape = (c.num_heads + 2 * c.num_kv_heads, c.num_kv_heads, c.head_dim, c.block_size)
    qkv, kv_cache, batch = sample_rows(query_lens, seq_lens, shape, c.dtype, CPU, generator())
    slots = kv_cache.view(-1, *kv_cache.shape[2:])
    old = torch.zeros(len(slots), dtype=torch.bool)
    for row, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
        tokens = torch.arange(max(0, seq_len - query_len))
        blocks = batch.block_table[row, tokens // c.block_size].long()
        old[blocks * c.block_size + tokens % c.block_size] = True
    slots[~old] = float("nan")
    positions, slot_mapping = places(batch, len(qkv), c.block_size)
    is_padding = positions < 0
    positions[is_padding], slot_mapping[is_padding] = 0, -1
    weights = [randn((c.head_dim,), c.dtype, CPU, generator()) for _ in range(c.num_weights - 1)]
    return qkv, positions, slot_mapping, kv_cache, batch, rotary_table(c.max_position, c.head_dim), *weights


def assert_agrees(contract: FusedRopeAttention, inputs: tuple[Any, ...], launcher: Any = None) -> None:
    for error in check(contract, launcher or OP.provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


@pytest.mark.parametrize("seq_lens", [[70], [1, 16, 17, 64, 33], [5, 0, 70, 0]], ids=str)
@pytest.mark.parametrize("contract", VARIANTS, ids=str)
def test_decode_rows_agree_with_the_reference(contract: FusedRopeAttention, seq_lens: list[int]):
    assert_agrees(contract, poisoned(contract, [1] * len(seq_lens), seq_lens))


@pytest.mark.parametrize(("query_lens", "seq_lens"), [([1, 1, 33, 5], [40, 7, 33, 70]), ([3], [60])], ids=str)
@pytest.mark.parametrize("contract", [*VARIANTS[:3], *QUANTIZED], ids=str)
def test_mixed_rows_agree_with_the_reference(contract: FusedRopeAttention, query_lens: list[int], seq_lens: list[int]):
    assert_agrees(contract, poisoned(contract, query_lens, seq_lens))


@pytest.mark.parametrize(
    ("ahead", "lookup_ahead"), [(0, True), (32, True), (64, True), (0, False), (64, False)], ids=str
)
@pytest.mark.parametrize("programs", [1, 64])
@pytest.mark.parametrize("contract", [SMALL, VARIANTS[2], VARIANTS[4], *QUANTIZED], ids=str)
def test_tiles_and_splits_add_up_to_all_keys(
    contract: FusedRopeAttention, programs: int, ahead: int, lookup_ahead: bool
):
    usual = launch_module(contract.name).default_config(contract, 4, gemm_target("sm_90"))
    config = replace(usual, programs=programs, ahead=ahead, lookup_ahead=lookup_ahead)

    def interpret_in_tiles_of_16(kernel: Any, config: Any, *arguments: Any) -> Any:
        tiles = (16,) if kernel.endswith("rope_attention_decode") else arguments[-1:]
        return interpret(kernel, config, *arguments[:-1], *tiles)

    inputs = poisoned(contract, [1] * 5, [127, 0, 1, 64, 65])
    assert_agrees(contract, inputs, lambda *x: launch(contract, interpret_in_tiles_of_16, config, *x))


def with_siblings(contract: FusedRopeAttention, sequences: list[tuple[int, int]], padding: int = 0) -> tuple[Any, ...]:
    """A step of single tokens: of sequences of these lengths the last tokens, so many of each; then padding."""
    lens = [*sequences, *[(0, 1)] * padding]
    qkv, positions, slots, kv_cache, batch, *weights = poisoned(contract, [n for _, n in lens], [n for n, _ in lens])
    return qkv, positions, slots, kv_cache, siblings_apart(batch), *weights


@pytest.mark.parametrize("programs", [1, 64])
@pytest.mark.parametrize(
    ("sequences", "padding"),
    [([(70, 2)] * 4, 1), ([(16, 4), (18, 4), (64, 1), (33, 3)], 3), ([(5, 5), (9, 8)], 0)],
    ids=str,
)
@pytest.mark.parametrize("contract", VARIANTS, ids=str)
def test_siblings_attend_to_one_anothers_tokens(
    contract: FusedRopeAttention, sequences: list[tuple[int, int]], padding: int, programs: int
):
    usual = launch_module(contract.name).default_config(contract, 4, gemm_target("sm_90"))
    kernels = []

    def interpret_in_tiles_of_16(kernel: str, config: Any, *arguments: Any) -> Any:
        kernels.append(kernel.rpartition(".")[2])
        is_attention = kernels[-1] == "paged_attention_siblings"
        return interpret(kernel, config, *(arguments[:-1] if is_attention else arguments), *([16] * is_attention))

    config = replace(usual, programs=programs)
    inputs = with_siblings(contract, sequences, padding)
    assert_agrees(contract, inputs, lambda *x: launch(contract, interpret_in_tiles_of_16, config, *x))
    assert "paged_attention_siblings" in kernels


def test_rows_of_another_sequence_are_no_siblings_for_being_a_token_further():
    """Their caches begin with the same blocks."""
    inputs = with_siblings(SMALL, [(64, 1), (65, 1), (66, 2), (9, 2), (8, 1), (9, 2)])
    batch = inputs[4]
    batch.block_table[1, :3] = batch.block_table[0, :3]
    assert_agrees(SMALL, inputs)


@pytest.mark.parametrize(("stages", "tiles"), [(3, 1), (4, 1), (5, 2), (7, 3)])
def test_the_program_for_siblings_has_as_many_tiles_on_their_way_though_it_looks_blocks_up_ahead(
    stages: int, tiles: int
):
    usual = launch_module(SMALL.name).default_config(SMALL, 4, gemm_target("sm_90"))
    stages_of = {}

    def run(kernel: str, config: Any, *arguments: Any) -> None:
        stages_of[kernel.rpartition(".")[2]] = config.num_stages

    config = replace(usual, decode_stages=stages, lookup_ahead=False)
    launch(SMALL, run, config, *with_siblings(SMALL, [(70, 2)] * 5))
    launch(SMALL, run, config, *poisoned(SMALL, [1, 1], [70, 5]))
    assert stages_of["paged_attention_siblings"] == 1 + tiles
    assert stages_of["rope_attention_decode"] == stages


def test_a_config_that_was_written_before_there_was_the_choice_looks_block_numbers_up_ahead():
    module = launch_module(SMALL.name)
    config = module.default_config(SMALL, 4, gemm_target("sm_90"))
    written = msgspec.to_builtins(config)
    del written["lookup_ahead"]
    assert msgspec.convert(written, module.Config) == config


def launched(contract: FusedRopeAttention, query_lens: list[int], programs: int) -> list[str]:
    kernels: list[str] = []

    def run(kernel: str, config: Any, *arguments: Any) -> None:
        kernels.append(kernel.rpartition(".")[2])

    usual = launch_module(SMALL.name).default_config(contract, 4, gemm_target("sm_90"))
    launch(contract, run, replace(usual, programs=programs), *poisoned(contract, query_lens, [70, 5]))
    return kernels


def test_it_is_one_launch_where_every_row_has_one_token_and_its_halves_elsewhere():
    assert launched(SMALL, [1, 1], programs=1) == ["rope_attention_decode"]
    assert launched(SMALL, [1, 1], programs=64) == ["rope_attention_decode", "paged_attention_combine"]
    assert launched(SMALL, [2, 1], programs=64)[:2] == ["fused_qk_norm_rope", "paged_attention_varlen"]


def test_what_puts_parts_together_quantizes_and_else_that_is_a_launch():
    contract = replace(SMALL, quant_dtype=FP8)
    quant = "dynamic_per_token_scaled_quant"
    assert launched(contract, [1, 1], programs=64) == ["rope_attention_decode", "combine_and_quantize"]
    assert launched(contract, [1, 1], programs=1) == ["rope_attention_decode", quant]
    assert launched(contract, [2, 1], programs=64)[-1] == quant
