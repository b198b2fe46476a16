"""Programs in Gluon: recorded, built and found again like those that Helion generates."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

import parhelion.ops.decoder_block
import parhelion.tuning.record
from parhelion.ops.contract import Contract
from parhelion.ops.decoder_block import OP
from parhelion.ops.decoder_block.launch import build_inputs, launch
from parhelion.ops.gluon_provider import gluon_source
from parhelion.ops.inputs import empty_inputs
from parhelion.packs.format import Pack
from parhelion.packs.store import read_pack, write_pack
from parhelion.packs.verify import verify
from parhelion.tuning.build_pack import build_pack, untuned_pack
from parhelion.tuning.build_rows import untuned_config
from parhelion.tuning.cross_compile import BuildError
from parhelion.tuning.host_recipe import host_recipe
from parhelion.tuning.matrix import Task, build
from parhelion.tuning.programs import Program, programs_of
from parhelion.tuning.prune import why_dropped
from parhelion.tuning.record import GeneratedCode, Preparer, Recorder, record
from parhelion.tuning.target import target
from tests.tuning.test_programs import Finder, check_guards
from tests.tuning.watched_code import evaluated

SM_90, SM_100 = target("sm_90"), target("sm_100")
PLAIN, NORMED, _ = OP.examples
SOURCE = Path(__file__).with_name("gluon_block.py").read_text()


@pytest.fixture(autouse=True)
def _as_in_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that computes next to nothing in the place of the op's."""
    monkeypatch.setattr(parhelion.tuning.record, "gluon_source", lambda kernel: SOURCE)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setenv("TRITON_DISABLE_LINE_INFO", "1")


def config_of(contract: Contract, **changes: Any) -> Any:
    return replace(untuned_config(contract, 1, SM_90), **changes)


def built(contract: Contract, **changes: Any) -> Program:
    (program,) = programs_of(contract, 1, config_of(contract, **changes), SM_90, GeneratedCode())
    return program


def returning_none(path: Path) -> list[str]:
    """Functions for the device that return None by name."""
    return [
        f"{path.parent.name}/{path.name}: {function.name}"
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        and any(ast.unparse(each) == "gluon.jit" for each in function.decorator_list)
        for node in ast.walk(function)
        if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant) and node.value.value is None
    ]


def test_no_function_for_the_device_returns_none_which_triton_3_6_refuses(tmp_path: Path):
    sources = sorted(Path(parhelion.ops.decoder_block.__file__).parents[1].rglob("gluon_*.py"))
    assert len(sources) > 5
    assert [found for path in sources for found in returning_none(path)] == []
    seen = tmp_path / "gluon_seen.py"
    seen.write_text("@gluon.jit\ndef found(x):\n    if x is None:\n        return None\n    return x\n")
    assert len(returning_none(seen)) == 1


@pytest.mark.parametrize("contract", [PLAIN, NORMED], ids=["plain", "head norms"])
def test_a_program_is_built_with_the_warps_that_it_gives_work_of_their_own(contract: Contract):
    program = built(contract)
    binary = program.binary
    assert program.data.startswith(b"\x7fELF")
    assert binary.symbol == "_gluon_decoder_block"
    assert binary.num_warps == 4 + 4
    assert binary.shared_bytes >= 4 * config_of(contract).tile_k
    assert (binary.scratch_bytes, binary.stack_bytes) == (0, 0)
    assert binary.programmatic
    assert why_dropped([program], SM_90) is None
    assert not built(contract, programmatic=False).binary.programmatic


def test_its_recipe_is_what_its_host_function_launches():
    recipe = built(PLAIN).binary.recipe
    assert recipe.grid == ("num_programs",)
    passed = [argument.value for argument in recipe.arguments]
    # There are no head norms, and all numbers but the scale are constants.
    assert passed == [*recipe.parameters[:11], *recipe.parameters[13:24], "scale"]
    assert [argument.type for argument in recipe.arguments] == ["*"] * 22 + ["fp32"]
    assert "q_norm" in [argument.value for argument in built(NORMED).binary.recipe.arguments]
    # A step's integers may lie anywhere.
    anywhere = {"positions", "slot_mapping", "block_table", "seq_lens"}
    assert set(passed[:-1]) - set(recipe.aligned) == anywhere
    assert host_recipe(SOURCE, "decoder_block.decoder_block").grid == ("num_programs",)


@pytest.mark.parametrize("contract", [PLAIN, NORMED], ids=["plain", "head norms"])
def test_a_launch_finds_the_program_that_was_built_for_it(contract: Contract):
    first, other = built(contract), built(contract, num_programs=64, producer_warps=8)
    assert first.data != other.data
    find = Finder([first, other], "sm_90")
    for inputs in (empty_inputs(contract, 1), *build_inputs(contract, 1)):
        launch(contract, find, config_of(contract), *inputs)
    assert find.launched == [first.binary] * 2


@pytest.mark.parametrize(("bucket", "sizes"), [(2, (1, 2)), (4, (3, 4)), (16, (1, 9, 13, 16))])
def test_a_program_of_several_tokens_serves_all_numbers_of_its_bucket(bucket: int, sizes: tuple[int, ...]):
    """And fewer tokens, should a pack have nothing else for them: the tokens that it is written for are no argument."""
    config = replace(untuned_config(NORMED, bucket, SM_90), warps=4 if bucket == 2 else 8)
    programs = programs_of(NORMED, bucket, config, SM_90, GeneratedCode())
    # One for rows that are all of other sequences, and one for those that are not.
    given = [dict(zip(each.binary.recipe.parameters, each.binary.kinds, strict=True)) for each in programs]
    assert [each["row_slots"] for each in given] == ["None", "int32[1]"]
    program = programs[0]
    binary = program.binary
    assert binary.kernel == "decoder_block.decoder_rows"
    assert binary.symbol == "_gluon_decoder_rows"
    assert binary.num_warps == config.warps + 4
    assert binary.programmatic
    recipe = binary.recipe
    assert recipe.grid == ("num_programs",)
    assert [(each.value, each.type) for each in recipe.arguments][-3:] == [
        ("hidden.size(0)", "i32"),
        ("block_table.stride(0)", "i32"),
        ("scale", "fp32"),
    ]
    # Nothing of how many tokens there are, or how wide a table is, was taken for granted.
    assert recipe.equal == ()
    assert not {"hidden.size(0)", "block_table.stride(0)"} & set(recipe.aligned)
    assert not {"positions", "slot_mapping", "block_table", "seq_lens"} & set(recipe.aligned)
    steps = [(size, empty_inputs(NORMED, size)) for size in sizes]
    for size, inputs in steps:
        launched = Only(program)
        launch(NORMED, launched, config, *inputs)
        assert launched.passed[-3:-1] == [size, inputs[5].block_table.stride(0)]


class Only:
    """A runner as a pack's row has it, of which nothing but the name tells programs apart."""

    def __init__(self, program: Program) -> None:
        self.target = "sm_90"
        self.passed: list[Any] = []
        self._binary = program.binary

    def __call__(self, kernel: str, config: Any, *arguments: Any) -> None:
        assert (kernel, config.num_warps) == (self._binary.kernel, self._binary.config["num_warps"])
        check_guards(self._binary, arguments)
        names = dict(zip(self._binary.recipe.parameters, arguments, strict=True))
        self.passed += [evaluated(each.value, names) for each in self._binary.recipe.arguments]


def test_it_is_recorded_as_one_launch_of_its_own_text():
    (found,) = record(PLAIN, 1, "sm_90", GeneratedCode())
    assert found.source == SOURCE
    assert found.options == {"num_warps": 4}
    assert found.function.is_gluon()
    assert (found.static_sizes, found.arguments[11:13]) == ((), (None, None))
    preparer = Preparer("sm_90", GeneratedCode())
    for config in (config_of(PLAIN), config_of(PLAIN, ring=4)):
        launch(PLAIN, Recorder(preparer), config, *empty_inputs(PLAIN, 1))
    assert list(preparer.sources.values()) == [SOURCE] * 2


def test_it_is_built_for_its_target_alone():
    with pytest.raises(BuildError, match="a program for sm_90, and sm_100 is another"):
        programs_of(PLAIN, 1, config_of(PLAIN), SM_100, GeneratedCode())
    there, elsewhere = (build(Task(PLAIN, each, (1, 16, 256))) for each in (SM_90, SM_100))
    assert [(each.num_tokens, each.built, each.num_warps) for each in there] == [((1,), True, 8)]
    assert [(each.num_tokens, each.built, each.instead) for each in elsewhere] == [((1,), False, "weight_only_mv")]
    rows = build(Task(NORMED, SM_90, (1, 16, 256)))
    assert [(each.kernel.partition(".")[2], each.num_tokens, each.num_warps) for each in rows] == [
        ("decoder_block", (1,), 8),
        ("decoder_rows", (16,), 12),
    ]


class Here:
    """A compiler in this process."""

    def compile(self, requests: Any, more: Any = None) -> Iterator[tuple[int, tuple[Program, ...] | str, float]]:
        for index, (contract, bucket, config) in enumerate(requests):
            yield index, tuple(programs_of(contract, bucket, config, SM_90, GeneratedCode())), 0.1


def untuned(contract: Contract, to: Any) -> Pack:
    return untuned_pack("tiny", (contract,), (), to)


def test_a_pack_has_its_row_for_one_token_and_serves_it(tmp_path: Path):
    assert untuned(PLAIN, SM_100).rows == ()
    made = build_pack(untuned(PLAIN, SM_90), SM_90, Here(), name="new", command="parhelion build tiny")
    (row,) = made.pack.rows
    assert (row.num_tokens, row.best.provider, row.chosen_by) == (1, "gluon", "untuned")
    assert row.best.binaries == (made.pack.binaries[0].file,)
    write_pack(made.pack, made.binaries, tmp_path / "tiny.zip")
    assert verify(read_pack(tmp_path / "tiny.zip"), made.pack.source_hashes) == []


def test_a_pack_has_rows_for_up_to_16_tokens(tmp_path: Path):
    made = build_pack(untuned(NORMED, SM_90), SM_90, Here(), name="new", command="parhelion build tiny")
    assert [(row.num_tokens, row.best.provider) for row in made.pack.rows] == [(m, "gluon") for m in (1, 2, 4, 8, 16)]
    kernels = {each.file: each.kernel.partition(".")[2] for each in made.pack.binaries}
    served = [kernels[file] for row in made.pack.rows for file in row.best.binaries]
    assert served == ["decoder_block", *["decoder_rows"] * 8]
    write_pack(made.pack, made.binaries, tmp_path / "tiny.zip")
    assert verify(read_pack(tmp_path / "tiny.zip"), made.pack.source_hashes) == []


def test_an_op_that_helion_has_programs_of_has_none_in_gluon():
    assert gluon_source("rms_norm.rms_norm") is None
    assert OP.tile_programs == "gluon"
    assert [each.name for each in OP.providers if each.why_not(torch.device("cuda")) is None] == ["reference"]
