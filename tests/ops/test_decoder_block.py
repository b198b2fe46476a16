"""A block of one token in one launch: what it computes, what its program is given, where it serves from a pack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from parhelion.ops.arrival_counters import arrival_counters
from parhelion.ops.check import compare
from parhelion.ops.contract import as_tuple
from parhelion.ops.decoder_block import OP, DecoderBlock
from parhelion.ops.decoder_block.launch import (
    Config,
    build_inputs,
    candidates,
    default_config,
    launch,
    scratch_size,
)
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.oracle import Oracle
from parhelion.ops.pack_kernels import PackKernels
from parhelion.ops.registry import has_programs
from parhelion.packs.format import Argument, BlockTime, Candidate, Recipe, Row
from parhelion.packs.match import Chosen, match
from parhelion.packs.store import read_pack
from parhelion.platform.ceilings import Ceilings
from tests.ops.packed_norm import opened
from tests.packs import sample
from tests.platform.fake_library import FakeCuda

CPU = torch.device("cpu")
SM_90 = gemm_target("sm_90")
PLAIN = OP.examples[0]
NORMED = replace(PLAIN, head_epsilon=1e-6)
LARGE = OP.examples[2]


def inputs_of(contract: DecoderBlock, num_tokens: int = 1, seed: int = 1) -> tuple[Any, ...]:
    return contract.sample_inputs(num_tokens, CPU, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_tokens", [1, 3, 16])
@pytest.mark.parametrize("contract", [PLAIN, NORMED], ids=["plain", "head norms"])
def test_it_is_its_five_parts_one_after_the_other(contract: DecoderBlock, num_tokens: int):
    hidden, residual, positions, slots, cache, batch, *weights = inputs_of(contract, num_tokens)
    qkv, attention, out, gate_up, down = contract.parts
    assert len(weights) == contract.num_weights == (11 if contract is PLAIN else 13)
    later = weights[-7:]
    projected, first = qkv.reference(hidden, residual, *weights[:3])
    of_heads = weights[3:4] if contract is PLAIN else weights[3:6]
    attended, new_cache = attention.reference(projected, positions, slots, cache, batch, *of_heads)
    activated, second = gate_up.reference(out.reference(attended, *later[:2]), first, *later[2:5])
    expected = down.reference(activated, *later[5:]), second, new_cache
    found = contract.reference(hidden, residual, positions, slots, cache, batch, *weights)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert not torch.equal(found[2], cache)


@pytest.mark.parametrize("contract", [PLAIN, NORMED], ids=["plain", "head norms"])
def test_roundings_between_the_parts_are_within_its_bounds_and_what_is_missed_is_not(contract: DecoderBlock):
    inputs = inputs_of(contract)
    oracle = Oracle(contract, inputs)
    errors = oracle.compare(contract.reference)
    assert all(error.problem is None for error in errors)
    # A third of what is allowed is left for whoever adds up in another order, and rounds elsewhere.
    bounds = {output.name: output.relative for output in contract.outputs}
    assert all(error.relative < bounds[error.output] / 1.5 for error in errors)

    def without(position: int, rows: slice, columns: slice) -> dict[str, str | None]:
        changed = list(inputs)
        changed[position] = inputs[position].clone()
        changed[position][rows, columns] = 0
        found = as_tuple(contract.reference(*changed))
        expected = as_tuple(contract.reference(*inputs))
        return {error.output: error.problem for error in compare(contract, found, expected)}

    first_out, first_down = (len(inputs) - back for back in (7, 2))
    assert without(first_down, slice(0, 64), slice(None))["hidden"] is not None
    assert without(first_down, slice(None), slice(0, 256))["hidden"] is not None
    assert without(first_out, slice(0, 64), slice(None))["residual"] is not None


def test_it_moves_what_its_parts_do_less_what_they_hand_each_other():
    traffic = LARGE.traffic(1)
    of_weights = sum(part.traffic(1).bytes for part in (LARGE.parts[0], LARGE.parts[2], LARGE.parts[3], LARGE.parts[4]))
    of_attention = LARGE.parts[1].traffic(1).bytes
    assert 0 < of_weights + of_attention - traffic.bytes < of_attention
    assert traffic.flops == sum(part.traffic(1).flops for part in LARGE.parts)


def test_its_floor_is_that_of_its_bytes_on_a_device_whose_matrix_unit_takes_its_codes():
    # About an H200's; plain arithmetic would take 120 us.
    h200 = Ceilings("NVIDIA H200", 4.29e12, float32=52e12, bfloat16=720e12, float8=1300e12, int8=None)
    traffic = LARGE.traffic(16)
    floor_s = h200.floor_s(traffic.bytes, traffic.flops, traffic.unit)
    assert floor_s == pytest.approx(traffic.bytes / 4.29e12)
    assert 50e-6 < floor_s < 60e-6


class Recorded:
    """A runner that keeps what it is given."""

    def __init__(self, target: str | None = "sm_90") -> None:
        self.target = target
        self.calls: list[tuple[str, KernelConfig, tuple[Any, ...]]] = []

    def __call__(self, kernel: str, config: KernelConfig, *arguments: Any) -> None:
        self.calls.append((kernel, config, arguments))


def behind_tensors(
    run: Recorded, inputs: tuple[Any, ...], results: tuple[Any, ...], of_rows: tuple[Any, ...] = ()
) -> tuple[Any, ...]:
    """What a program was given behind all inputs and what it makes of them, which stand in order.

    Args:
        of_rows: what it is given of the rows besides their blocks and lengths.
    """
    ((_, _, arguments),) = run.calls
    hidden, residual, positions, slots, cache, batch, *weights = inputs
    new_hidden, new_residual, new_cache = results
    heads = weights[4:6] if len(weights) == 13 else [None, None]
    given = [hidden, residual, positions, slots, cache, batch.block_table, batch.seq_lens, *of_rows]
    given += [*weights[:4], *heads, *weights[-7:], new_hidden, new_residual]
    assert all(ours is theirs for ours, theirs in zip(arguments, given, strict=False))
    assert new_cache is cache
    assert new_hidden.shape == new_residual.shape == hidden.shape
    assert new_hidden is not hidden
    assert new_residual is not residual
    return arguments[len(given) :]


@pytest.mark.parametrize("contract", [PLAIN, NORMED], ids=["plain", "head norms"])
def test_its_program_is_given_all_inputs_in_order_and_room_for_what_it_makes(contract: DecoderBlock):
    inputs = inputs_of(contract)
    config = replace(default_config(contract, 1, SM_90), num_programs=128, keys_a_program=64, programmatic=False)
    run = Recorded()
    results = launch(contract, run, config, *inputs)
    ((kernel, kernel_config, _),) = run.calls
    assert kernel == "decoder_block.decoder_block"
    assert kernel_config == KernelConfig(num_warps=4, num_stages=1)
    scratch, counters, *numbers = behind_tensors(run, inputs, results)
    size = (8 * 128 + 512 + 1024 + 16 * 512) // 2 + 16 * 4
    assert (
        (scratch.dtype, tuple(scratch.shape)) == (torch.float32, (size,)) == (torch.float32, (scratch_size(contract),))
    )
    assert counters is arrival_counters(CPU, 8)
    head_epsilon = 1e-6 if contract is NORMED else 0.0
    dims = (1e-6, head_epsilon, 128**-0.5, 512, 4, 2, 128, 1024, 16)
    layout = (128, 128, 24, 2, 64, 4, False)
    assert tuple(numbers) == (*dims, *layout)
    # Nobody but the last programs writes to the counters.
    assert not counters.any()


def test_it_says_what_it_is_not_for():
    config = default_config(PLAIN, 1, SM_90)
    with pytest.raises(ValueError, match="the program is for one token, and there are 2"):
        launch(PLAIN, Recorded(), config, *inputs_of(PLAIN, 2))
    *before, batch = inputs_of(PLAIN)[:6]
    two = replace(batch, seq_lens=torch.cat((batch.seq_lens, batch.seq_lens)))
    with pytest.raises(ValueError, match="1 in 2 rows"):
        launch(PLAIN, Recorded(), config, *before, two, *inputs_of(PLAIN)[6:])
    with pytest.raises(ValueError, match="a program for sm_90, and sm_80 is another"):
        launch(PLAIN, Recorded("sm_80"), config, *inputs_of(PLAIN))
    run = Recorded()
    hidden, residual, *others = inputs_of(PLAIN)
    found = launch(PLAIN, run, config, hidden[:0], residual[:0], *others)
    assert [tuple(each.shape) for each in found[:2]] == [(0, 512), (0, 512)]
    assert run.calls == []


def test_there_are_candidates_for_one_token_on_a_hopper_and_none_elsewhere():
    for contract in OP.examples:
        assert isinstance(contract, DecoderBlock)
        found = candidates(contract, 1, SM_90)
        assert found[0] == default_config(contract, 1, SM_90)
        assert len(found) == len(set(found)) == 8
        assert {config.num_programs for config in found} == {132, 128}
        assert {config.in_flight for config in found} == {1, 2, 3}
        assert {config.keys_a_program for config in found} == {128, 192}
        for config in found:
            assert all(depth % (4 * config.tile_k) == 0 for depth in contract.depths)
            held = config.ring * 64 * config.tile_k + 2 * max(contract.depths)
            assert held < SM_90.shared_bytes
        assert candidates(contract, 64, SM_90) == []
        assert [candidates(contract, 1, gemm_target(name)) for name in ("sm_80", "sm_100", "gfx942")] == [[]] * 3
    assert [has_programs(PLAIN, *where) for where in ((1, "sm_90"), (2, "sm_90"), (1, "sm_100"))] == [
        True,
        False,
        False,
    ]
    # All programs run at once, on a part with fewer processors too.
    small = replace(SM_90, num_processors=78)
    assert {config.num_programs for config in candidates(LARGE, 1, small)} == {78, 64}


def test_it_is_built_for_integers_at_any_address():
    ((_, _, positions, slots, cache, batch, *_),) = build_inputs(PLAIN, 1)
    for integers in (positions, slots, batch.block_table, batch.seq_lens):
        assert integers.data_ptr() % 16 != 0
    assert cache.data_ptr() % 16 == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 64},
        {"hidden_size": 768},
        {"intermediate_size": 1280},
        {"num_heads": 6},
        {"num_heads": 20, "num_kv_heads": 1},
        {"num_heads": 4, "num_kv_heads": 3},
        {"dtype": torch.float16},
        {"quant_dtype": torch.int8},
    ],
    ids=str,
)
def test_its_program_takes_some_dimensions_only(changes: dict[str, Any]):
    assert PLAIN.has_program
    assert not replace(PLAIN, **changes).has_program


NAMES = (
    "hidden residual positions slots cache block_table seq_lens norm qkv qkv_scales cos_sin q_norm k_norm out "
    "out_scales post gate_up gate_up_scales down down_scales new_hidden new_residual scratch counters epsilon "
    "head_epsilon scale hidden_size num_heads num_kv_heads head_dim intermediate_size block_size num_programs "
    "tile_k ring in_flight keys_a_program producer_warps programmatic"
)
RECIPE = Recipe(
    tuple(NAMES.split()),
    ("num_programs",),
    tuple(Argument(name, "*") for name in ("hidden", "new_hidden", "down", "qkv")),
)


def packed(folder: Path, num_programs: int) -> tuple[Any, FakeCuda]:
    """A pack with a row of the block, opened on a device of 132 processors; and what it launches there."""
    config = Config(num_programs)
    best = Candidate("gluon", msgspec.to_builtins(config), 9.0, 9.0, 9.0, ("rms_norm.cubin",))
    kinds = ("bfloat16[2]",) * 24 + ("0",) * (len(RECIPE.parameters) - 24)
    binary = sample.binary(
        kernel="decoder_block.decoder_block",
        config={"num_warps": 4, "programmatic": True},
        kinds=kinds,
        recipe=RECIPE,
        num_warps=8,
        programmatic=True,
    )
    row = Row("decoder_block", PLAIN.key(), 1, best, measured_at=1)
    hashes = {"decoder_block": "0" * 16}
    pack = sample.pack(
        rows=(row,), binaries=(binary,), source_hashes=hashes, models=(), blocks=(BlockTime((PLAIN.key(),), 1, 8.0),)
    )
    library = FakeCuda()
    return opened(folder, pack, library, hashes=hashes), library


def test_a_pack_launches_it_with_the_warps_that_were_built(tmp_path: Path):
    kernels, library = packed(tmp_path, 132)
    found = kernels.launcher(PLAIN, OP.provider("reference"))
    assert found.providers == ("gluon",)
    hidden, *others = inputs_of(PLAIN)
    new_hidden, _, cache = found(hidden, *others)
    (launched,) = library.launched
    assert (launched.grid, launched.block) == ((132, 1, 1), (256, 1, 1))
    assert cache is others[3]
    assert launched.attributes  # it starts before its predecessor has ended
    addresses = [int.from_bytes(each, "little") for each in launched.parameters[:4]]
    assert addresses == [hidden.data_ptr(), new_hidden.data_ptr(), others[-2].data_ptr(), others[6].data_ptr()]
    assert (kernels.time_us(PLAIN, 1), kernels.block_us((PLAIN,), 1)) == (9.0, 8.0)
    assert kernels.time_us(PLAIN, 2) is None


def test_a_device_that_cannot_run_all_programs_at_once_has_no_use_for_the_row(tmp_path: Path):
    kernels, _ = packed(tmp_path, 144)
    assert not kernels.holds(PLAIN)
    assert kernels.time_us(PLAIN, 1) is None
    assert kernels.block_us((PLAIN,), 1) is None
    assert "144" in kernels.notes[0]


def test_a_damaged_program_is_not_asked_for(tmp_path: Path):
    packed(tmp_path, 132)
    (damaged,) = tmp_path.rglob("*.cubin")
    damaged.write_bytes(b"not what was packed")
    stored = read_pack(tmp_path / "pack")
    chosen = Chosen(stored, match(stored.pack.fingerprint, sample.H100))
    kernels = PackKernels(chosen, CPU, {"decoder_block": "0" * 16}, 132)
    assert not kernels.holds(PLAIN)
    assert kernels.block_us((PLAIN,), 1) is None
    assert "decoder_block cannot be launched" in kernels.notes[0]
