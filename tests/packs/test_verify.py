"""A good pack has no problems, and each thing that can be wrong is said once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from parhelion.packs.format import Argument, BlockTime
from parhelion.packs.store import StoredPack, read_pack
from parhelion.packs.verify import verify
from tests.packs.sample import CODE, FILES, GEMM, HASHES, RMS_NORM, binary, candidate, recipe, row

Stored = Callable[..., StoredPack]


@pytest.mark.parametrize("name", ["pack", "pack.zip"])
def test_a_good_pack_has_no_problems(stored: Stored, name: str) -> None:
    assert verify(stored(name)) == []
    assert verify(stored(name), HASHES | {"another": "c"}) == []


def test_missing_altered_and_unnamed_files_are_named(stored: Stored, tmp_path: Path) -> None:
    stored("pack")
    bin_ = tmp_path / "pack" / "bin"
    (bin_ / "rms_norm.cubin").write_bytes(b"short")
    (bin_ / "more.cubin").write_bytes(b"")
    altered, unnamed = verify(read_pack(tmp_path / "pack"))
    assert "bin/rms_norm.cubin has 5 bytes" in altered
    assert "no binary names the file bin/more.cubin; remove it" in unnamed
    shutil.rmtree(bin_)
    [missing] = verify(read_pack(tmp_path / "pack"))
    assert "bin/rms_norm.cubin is missing" in missing


def test_stale_ops_are_named_once_each_and_only_if_the_sources_here_are_given(stored: Stored) -> None:
    pack = stored()
    [problem] = verify(pack, HASHES | {"rms_norm": "f" * 64})
    assert problem.startswith("rms_norm: its 3 rows")
    assert verify(pack) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((row(1), row(1)), f"{RMS_NORM}, M up to 1: there are two rows"),
        ((row(16), row(1)), f"{RMS_NORM}, M up to 1: comes after the row for M up to 16"),
        ((row(0),), "num_tokens must be at least 1"),
        ((row(1, op="linear"),), "is said to be of the op 'linear'"),
        ((row(1, "rope(dim=64)"),), "source_hashes lacks 'rope'"),
        ((row(1, best=candidate("inductor")),), "inductor would compile while serving"),
        ((row(1, best=msgspec.structs.replace(candidate(), config=None)),), "helion serves and has no config"),
        ((row(1, best=msgspec.structs.replace(candidate(), binaries=())),), "helion serves and has no binaries"),
        (
            (row(1, best=msgspec.structs.replace(candidate(), binaries=("rms_norm.cubin", "gone.cubin"))),),
            "needs the binary gone.cubin, which the pack does not list",
        ),
        ((row(1, best=candidate(time_us=-1.0)),), "a time is below 0 us"),
        ((row(1, runners_up=(candidate("torch", 9.0), candidate("x", 8.0))),), "not in the order of their times"),
    ],
)
def test_a_problem_with_a_row_is_said_once(stored: Stored, rows: tuple, message: str) -> None:
    [problem] = verify(stored(rows=rows))
    assert message in problem


def test_rows_of_several_contracts_may_be_mixed_and_unmeasured_ones_are_no_problem(stored: Stored) -> None:
    assert verify(stored(rows=(row(16), row(1, GEMM), row(64, best=candidate(time_us=0.0)), row(2, GEMM)))) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scratch_bytes": 64}, "wants 64 bytes of scratch memory"),
        ({"kinds": ("bfloat16[2]",)}, "the recipe has 4 parameters, and the binary 1 kinds"),
        ({"recipe": recipe(parameters=("x", "x", "y", "epsilon"))}, "names a parameter twice"),
        ({"recipe": recipe(parameters=("x", "weight", "y", "import os"))}, "is called 'import os'"),
        ({"recipe": recipe(grid=())}, "its grid has 0 dimensions"),
        ({"recipe": recipe(grid=("1",) * 4)}, "its grid has 4 dimensions"),
        ({"recipe": recipe(grid=("__import__('os')",))}, "cannot be used"),
        ({"recipe": recipe(grid=("z.size(0)",))}, "'z' is none of its tensors (x, weight, y)"),
        ({"recipe": recipe(grid=("x.size(2)",))}, "asks for x.size(2), and x has 2 dimensions"),
        ({"recipe": recipe(arguments=(Argument("1", "i8"),))}, "an argument is of type 'i8'"),
        ({"recipe": recipe(arguments=(Argument("epsilon", "*"),))}, "a pointer is to 'epsilon'"),
        ({"recipe": recipe(arguments=(Argument("x.data_ptr()", "i64"),))}, "cannot be used"),
        ({"recipe": recipe(equal=(("x.ndim", 2),))}, "cannot be used"),
        ({"recipe": recipe(aligned=("weight.stride(0) + z",))}, "cannot be used"),
    ],
)
def test_a_problem_with_a_binary_is_said_once(stored: Stored, changes: dict, message: str) -> None:
    problems = verify(stored(binaries=(binary(**changes),)))
    assert message in " ".join(problems)
    assert len(problems) == 1
    assert problems[0].startswith("rms_norm.rms_norm (rms_norm.cubin): ")


def test_parameters_that_are_no_numbers_are_not_for_arithmetic(stored: Stored) -> None:
    kinds = ("bfloat16[2]", "None", "bfloat16[2]", "torch.bfloat16")
    [problem] = verify(stored(binaries=(binary(kinds=kinds, recipe=recipe(arguments=(Argument("epsilon", "fp32"),))),)))
    assert "'epsilon' is none of its numbers" in problem


def test_a_binary_that_is_listed_twice_is_a_problem(stored: Stored) -> None:
    [problem] = verify(stored(binaries=(binary(), binary(config={"num_warps": 4, "block_sizes": [4]}))))
    assert "is listed twice" in problem


def test_binaries_may_differ_in_nothing_but_their_recipe_or_their_code(stored: Stored) -> None:
    launched_otherwise = binary(recipe=recipe(equal=()), file="launched_otherwise.cubin")
    others = (launched_otherwise, binary(b"for other static dimensions", file="other.cubin"))
    files = FILES | {"other.cubin": b"for other static dimensions", "launched_otherwise.cubin": CODE}
    assert verify(stored(files=files, binaries=(binary(), *others))) == []


def test_a_file_that_a_launch_finds_two_recipes_in_is_a_problem(stored: Stored) -> None:
    [problem] = verify(stored(binaries=(binary(), binary(recipe=recipe(equal=())))))
    assert problem.endswith("is launched in 2 ways for one config and kinds; give each its own file")


BLOCK = BlockTime((RMS_NORM, GEMM, RMS_NORM), 16, 10.0)


def test_a_block_all_of_whose_calls_have_rows_is_no_problem(stored: Stored) -> None:
    assert verify(stored(blocks=(BLOCK,))) == []


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((BLOCK, BLOCK), "is listed twice; remove one"),
        ((msgspec.structs.replace(BLOCK, time_us=0.0),), "its time is 0.0 us; measure again"),
        ((msgspec.structs.replace(BLOCK, num_tokens=64),), "has calls without a row for this M"),
        ((BlockTime((), 16, 10.0),), "the block of nothing, M = 16: has calls without a row"),
    ],
)
def test_a_problem_with_a_block_is_said_once(stored: Stored, blocks: tuple[BlockTime, ...], message: str) -> None:
    [problem] = verify(stored(blocks=blocks))
    assert message in problem
    assert problem.startswith("the block of ")
