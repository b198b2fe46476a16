"""A block of several tokens in one launch: what its program is given, for which steps it is, what the tuner sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.decoder_block import OP, DecoderBlock
from parhelion.ops.decoder_block.config import early_inputs
from parhelion.ops.decoder_block.launch import (
    Config,
    build_inputs,
    candidates,
    default_config,
    launch,
    row_scratch_size,
)
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.inputs import empty_inputs
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.registry import has_programs, most_tokens, needs_single_rows
from tests.ops.test_decoder_block import Recorded, behind_tensors

CPU = torch.device("cpu")
SM_90 = gemm_target("sm_90")
SMALL, NORMED, LARGE = OP.examples
assert isinstance(NORMED, DecoderBlock)
assert isinstance(LARGE, DecoderBlock)
PLAIN = replace(NORMED, head_epsilon=None)
BUCKETS = (2, 4, 8, 16)


@pytest.mark.parametrize("contract", [PLAIN, NORMED], ids=["plain", "head norms"])
@pytest.mark.parametrize(("num_tokens", "padded"), [(2, 2), (3, 4), (5, 8), (9, 16), (16, 16)])
def test_its_program_is_given_all_inputs_in_order_and_for_how_many_tokens_it_is(
    contract: DecoderBlock, num_tokens: int, padded: int
):
    inputs = empty_inputs(contract, num_tokens)
    config = replace(default_config(contract, 16, SM_90), keys_a_program=128, warps=4, programmatic=False)
    run = Recorded()
    results = launch(contract, run, config, *inputs)
    assert run.calls[0][:2] == ("decoder_block.decoder_rows", KernelConfig(num_warps=4, num_stages=1))
    scratch, counters, *numbers = behind_tensors(run, inputs, results, of_rows=(None,))
    assert (scratch.dtype, tuple(scratch.shape)) == (torch.float32, (row_scratch_size(contract, config),))
    assert counters is arrival_counters(CPU, 512)
    head_epsilon = 1e-6 if contract is NORMED else 0.0
    dims = (1e-6, head_epsilon, 128**-0.5, 2048, 16, 8, 128, 6144, 16)
    layout = (padded, 128, 256, 11, 2, 128, 4, 4, 1, 4, 4, False)
    assert tuple(numbers) == (*dims, *layout)


@pytest.mark.parametrize(("num_tokens", "bound"), [(2, 2), (3, 8), (8, 4), (16, 8)])
def test_rows_of_one_sequence_have_a_program_that_knows_whose_they_are(num_tokens: int, bound: int):
    *before, batch = empty_inputs(NORMED, num_tokens)[:6]
    rows = replace(batch, max_query_len=num_tokens, max_siblings=bound, row_slots=torch.zeros_like(batch.seq_lens))
    inputs = (*before, rows, *empty_inputs(NORMED, num_tokens)[6:])
    run = Recorded()
    results = launch(NORMED, run, default_config(NORMED, 16, SM_90), *inputs)
    given = behind_tensors(run, inputs, results, of_rows=(rows.row_slots,))
    usual = Recorded()
    results = launch(NORMED, usual, default_config(NORMED, 16, SM_90), *inputs[:5], batch, *inputs[6:])
    # Nothing else says that there are any.
    assert given[1:] == behind_tensors(usual, (*inputs[:5], batch, *inputs[6:]), results, of_rows=(None,))[1:]


def test_the_config_says_which_program_it_is():
    """A pack that was not tuned for a single token serves it with the program of several."""
    of_one, of_rows = (default_config(NORMED, bucket, SM_90) for bucket in (1, 2))
    names = []
    for config in (of_one, of_rows):
        run = Recorded()
        launch(NORMED, run, config, *empty_inputs(NORMED, 1))
        names += [(name, each.num_warps) for name, each, _ in run.calls]
    assert names == [("decoder_block.decoder_block", 4), ("decoder_block.decoder_rows", 8)]
    # What packs hold of one token says nothing of the rest.
    assert replace(of_one, parts=0, down_parts=0, rounds=1, warps=4) == of_one == Config(128, 256, 12)


@pytest.mark.parametrize("tokens", BUCKETS)
@pytest.mark.parametrize("contract", [NORMED, LARGE], ids=["1.7B", "8B"])
def test_there_is_room_for_all_that_programs_leave_each_other(contract: DecoderBlock, tokens: int):
    """As the program lays it out, one after the other."""
    c = contract
    for config in candidates(c, tokens, SM_90):
        columns = max(8, tokens)
        outputs = (c.qkv_size, c.hidden_size, 2 * c.intermediate_size)
        sums = sum(config.parts * columns * count for count in outputs) + config.down_parts * columns * c.hidden_size
        squares = 2 * config.num_programs * columns
        sharing = config.num_programs // c.num_kv_heads // tokens
        found = sharing * tokens * c.num_heads + sharing * tokens * c.attended_size / 2
        activated = columns * c.intermediate_size / 2
        assert sharing >= 1
        assert sums + squares + found + activated <= row_scratch_size(c, config)
    # The same for any number of tokens, as a binary may be for more than there are.
    assert len({row_scratch_size(c, replace(default_config(c, bucket, SM_90), ring=2)) for bucket in BUCKETS}) == 1


def test_few_key_heads_leave_more_programs_that_share_a_rows_keys():
    few = replace(NORMED, num_kv_heads=2)
    config = default_config(few, 2, SM_90)
    sums = 4 * (few.qkv_size + 2048 + 2 * 6144) + 4 * 2048
    shared = 32 * 2 * (few.num_heads + few.attended_size // 2)
    assert row_scratch_size(few, config) >= 8 * sums + shared


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("contract", [NORMED, LARGE], ids=["1.7B", "8B"])
def test_there_are_candidates_for_up_to_16_tokens_on_a_hopper(contract: DecoderBlock, bucket: int):
    found = candidates(contract, bucket, SM_90)
    assert found[0] == default_config(contract, bucket, SM_90)
    assert 4 <= len(found) == len(set(found)) <= 8
    assert {config.in_flight for config in found} == {1, 2, 3}
    assert {config.warps for config in found} == {8}
    assert {config.rounds for config in found} == ({1, 2} if contract == NORMED else {1, 2, 3})
    # With 16 rows every program has a key head of one, and all of its keys.
    assert {config.keys_a_program for config in found} == ({64} if bucket == 16 else {64, 128})
    for config in found:
        *depths, last = contract.depths
        early = early_inputs(last, config.num_programs, config.rounds)
        ends = early // config.down_parts, (last - early) // config.down_parts
        parts = [*(depth // config.parts for depth in depths), *ends]
        assert all(part % config.tile_k == 0 for part in parts)
        assert config.num_programs % config.parts == config.num_programs % config.down_parts == 0
        of_groups = {64 * (config.num_programs // each) for each in (config.parts, config.down_parts)}
        outputs = (contract.qkv_size, contract.hidden_size, 2 * contract.intermediate_size)
        assert all(count % of_group == 0 for count in outputs for of_group in of_groups)
        held = config.ring * 64 * config.tile_k + max(2 * max(8, bucket) * max(parts), 16 << 10)
        assert held + 2560 <= SM_90.shared_bytes
        # A tile more would be too much, or is more than is of use.
        assert held + 64 * config.tile_k + 2560 > SM_90.shared_bytes or config.ring * config.tile_k == 12 * 256


def test_there_are_none_for_more_tokens_elsewhere_or_where_programs_would_wait_for_one_another():
    assert [candidates(LARGE, bucket, SM_90) for bucket in (32, 64)] == [[], []]
    assert [candidates(LARGE, 16, gemm_target(name)) for name in ("sm_80", "sm_100", "gfx942")] == [[]] * 3
    small = replace(SM_90, num_processors=114)
    assert [bool(candidates(LARGE, bucket, small)) for bucket in (1, 2, 16)] == [True, False, False]


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 1024},
        {"hidden_size": 5120},
        {"intermediate_size": 6144 + 512},
        {"num_heads": 24},
        {"num_kv_heads": 16},
        {"num_heads": 64, "num_kv_heads": 4},
        {"dtype": torch.float16},
    ],
    ids=str,
)
def test_dimensions_that_are_not_divided_evenly_have_a_program_of_one_token_alone(changes: dict[str, Any]):
    assert NORMED.takes_rows
    other = replace(NORMED, **changes)
    assert not other.takes_rows
    assert [most_tokens(other, each) for each in (1, 2, 64)] == [1, 1, 1]
    assert [bool(candidates(other, bucket, SM_90)) for bucket in (1, 2, 16)] == [True, False, False]


def test_who_builds_and_plans_is_told_for_how_many_tokens_there_are_programs():
    assert [most_tokens(NORMED, each) for each in (1, 2, 16, 256)] == [1, 2, 16, 16]
    assert [most_tokens(SMALL, each) for each in (1, 2, 16, 256)] == [1] * 4
    for contract, most in ((NORMED, 16), (LARGE, 16), (SMALL, 1)):
        there = [size for size in (1, 2, 4, 8, 16, 32) if has_programs(contract, size, "sm_90")]
        assert there == [size for size in (1, 2, 4, 8, 16, 32) if size <= most]
        assert not has_programs(contract, 2, "sm_100")
    assert needs_single_rows([NORMED.parts[0], NORMED])
    assert not needs_single_rows(NORMED.parts)


@pytest.mark.parametrize(("bucket", "sizes"), [(1, [1]), (2, [2]), (4, [3, 4]), (8, [7, 8]), (16, [11, 16])])
def test_it_is_built_for_integers_at_any_address_and_tables_of_any_width(bucket: int, sizes: list[int]):
    steps = build_inputs(NORMED, bucket)
    found = [(len(step[0]), step[5].max_siblings > 1) for step in steps]
    assert found == [(size, shared) for size in sizes for shared in ((False,) if bucket == 1 else (False, True))]
    for hidden, _, positions, slots, cache, batch, *_ in steps:
        whose = [] if batch.max_siblings == 1 else [batch.row_slots]
        for integers in (positions, slots, batch.block_table, batch.seq_lens, *whose):
            assert integers.data_ptr() % 16 != 0
        assert cache.data_ptr() % 16 == hidden.data_ptr() % 16 == 0
        assert batch.block_table.shape[0] == batch.seq_lens.shape[0] == len(hidden)
        assert batch.block_table.stride(0) % 2 == 1
        assert batch.block_table.stride(0) > 1


def test_it_says_what_it_is_not_for():
    config = default_config(NORMED, 16, SM_90)
    with pytest.raises(ValueError, match="up to 16 tokens, and there are 17"):
        launch(NORMED, Recorded(), config, *empty_inputs(NORMED, 17))
    with pytest.raises(ValueError, match="one token, and there are 2"):
        launch(NORMED, Recorded(), default_config(NORMED, 1, SM_90), *empty_inputs(NORMED, 2))
    with pytest.raises(ValueError, match="one token, and there are 2"):
        launch(SMALL, Recorded(), default_config(SMALL, 2, SM_90), *empty_inputs(SMALL, 2))
    with pytest.raises(ValueError, match="a program for sm_90, and sm_80 is another"):
        launch(NORMED, Recorded("sm_80"), config, *empty_inputs(NORMED, 2))
    *before, batch = empty_inputs(NORMED, 4)[:6]
    weights = empty_inputs(NORMED, 4)[6:]
    others = (
        # A prompt of four tokens; two rows, one of them of three; a row and more guesses than there is a program for.
        replace(batch, seq_lens=batch.seq_lens[:1], max_query_len=4),
        replace(batch, seq_lens=batch.seq_lens[:2], max_query_len=4),
        replace(batch, max_query_len=4, max_siblings=16, row_slots=batch.seq_lens),
    )
    for rows in others:
        with pytest.raises(ValueError, match=f"4 in {len(rows.seq_lens)} rows of up to 4"):
            launch(NORMED, Recorded(), config, *before, rows, *weights)
    run = Recorded()
    found = launch(NORMED, run, config, *(each[:0] for each in before[:2]), *before[2:], batch, *weights)
    assert [tuple(each.shape) for each in found[:2]] == [(0, 2048), (0, 2048)]
    assert run.calls == []


def test_a_padding_row_changes_nothing_for_the_others():
    """In the reference, which programs are held to."""
    hidden, residual, positions, slots, cache, batch, *weights = SMALL.sample_inputs(
        3, CPU, torch.Generator().manual_seed(5)
    )
    alone = SMALL.reference(hidden, residual, positions, slots, cache, batch, *weights)
    lens, slots = batch.seq_lens.clone(), slots.clone()
    lens[1], slots[1] = 0, -1
    padded = SMALL.reference(hidden, residual, positions, slots, cache, replace(batch, seq_lens=lens), *weights)
    rows = torch.tensor([0, 2])
    for ours, theirs in zip(padded[:2], alone[:2], strict=True):
        torch.testing.assert_close(ours[rows], theirs[rows], rtol=0, atol=0)
        assert torch.isfinite(ours.float()).all()
    written = (padded[2] != cache).any(dim=-1).any(dim=-1).flatten()
    assert written.nonzero().flatten().tolist() == sorted(slots[rows].tolist())
