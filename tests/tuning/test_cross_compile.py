"""Binaries for devices that are not here, and the refusals."""

from __future__ import annotations

from pathlib import Path

import pytest
import triton

from parhelion.errors import ConfigError
from parhelion.tuning.cross_compile import BuildError, cross_compile, short_reason, specialize
from parhelion.tuning.resources import Resources, amd_resources, parse_nvidia
from parhelion.tuning.target import TARGETS, Target, target
from tests.tuning.triton_programs import cast_launch, product_launch, scale_launch


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")


@pytest.mark.parametrize("to", TARGETS, ids=lambda each: each.name)
def test_every_target_gets_a_binary_with_its_resources(to: Target):
    binary = cross_compile(scale_launch(), to)
    assert binary.size > 1000
    assert 4 <= binary.resources.registers <= 255
    assert binary.resources.stack_bytes == 0
    assert binary.num_warps == 4
    assert binary.shared_bytes <= to.max_shared_bytes


def test_a_type_that_the_target_lacks_is_the_reason():
    with pytest.raises(BuildError, match="fp8e4nv not supported in this architecture"):
        cross_compile(cast_launch(), target("sm_80"))
    assert cross_compile(cast_launch(), target("sm_89")).size > 0


def test_shared_memory_above_the_targets_is_refused_though_triton_builds_it():
    launch = product_launch(128, 256)
    with pytest.raises(BuildError, match=r"needs \d+ KiB of shared memory, above 99 KiB"):
        cross_compile(launch, target("sm_89"))
    assert cross_compile(launch, target("sm_80")).shared_bytes > 99 * 1024


def test_more_threads_than_a_program_may_have_are_refused():
    with pytest.raises(BuildError, match="needs 2048 threads, above 1024"):
        cross_compile(scale_launch(num_warps=32), target("gfx942"))
    assert cross_compile(scale_launch(num_warps=32), target("sm_90")).num_warps == 32


def test_arguments_are_specialized_as_triton_does_at_a_launch():
    how = specialize(scale_launch(factor=1, count=1024))
    assert how.signature == {
        "source": "*fp32", "target": "*fp32", "factor": "constexpr", "count": "i32", "BLOCK": "constexpr"
    }  # fmt: skip
    assert how.constants == {"factor": 1, "BLOCK": 1024}
    assert sorted(how.attributes) == [(0,), (1,), (3,)]


def test_what_is_not_aligned_is_not_called_aligned():
    how = specialize(scale_launch(count=1001, offset=1))
    assert sorted(how.attributes) == [(1,)]
    assert how.signature["factor"] == "fp32"


def test_large_integers_are_64_bits_and_none_is_a_constant():
    assert specialize(scale_launch(count=1 << 31)).signature["count"] == "i64"
    assert specialize(scale_launch(factor=None)).constants["factor"] is None


@pytest.mark.parametrize(
    ("message", "output", "reason"),
    [
        ("at 3:7:\n  x = f(y)\n      ^\nthe cause", "", "the cause"),
        ("at 3:7:\n  x = f(y)\n      ^\nValueError(\"type t not supported\")", "", "type t not supported"),
        ("PassManager::run failed", "f.py:3:7: error: cannot lower\nf.py: error: later", "cannot lower"),
        ("PassManager::run failed", "", "PassManager::run failed"),
        ("the cause\nWhile processing:\n  File f.py\n    code", "", "the cause"),
        ("ptxas\nptxas fatal   : unresolved\nRepro command: ptxas -v", "", "unresolved"),
        ("", "", "RuntimeError"),
    ],
)  # fmt: skip
def test_the_reason_is_the_line_that_names_the_cause(message: str, output: str, reason: str):
    assert short_reason(RuntimeError(message), output) == reason


def test_resources_are_read_from_what_the_tools_print():
    text = "Function f:\n  REG:89 STACK:16 SHARED:1024 LOCAL:0 CONSTANT[0]:600\n"
    assert parse_nvidia(text) == Resources(89, 16)
    assert amd_resources("    .private_segment_fixed_size: 8\n    .vgpr_count:     52\n") == Resources(52, 8)


def test_an_unknown_target_is_refused_with_those_that_exist():
    with pytest.raises(ConfigError, match="no target 'sm_70'; the targets are sm_80"):
        target("sm_70")
