"""The page and the list of what builds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from parhelion.errors import ConfigError
from parhelion.tuning.expected import pairs_built, read_expected, regressions, write_expected
from parhelion.tuning.matrix import Build
from parhelion.tuning.page import Asked, compile_matrix_page
from parhelion.tuning.target import target

BUILT = Build("f", "f(n=1)", "f", "sm_90", (1, 16), None, None, "Config()", 4, 32, 0, 2048, 8192, 0.1)
SPILLED = replace(BUILT, kernel="f_reduce", stack_bytes=24)
REFUSED = Build("f", "f(n=1)", "f", "sm_80", (1, 16), "no such type", "g")
ASKED = Asked(("m",), ("none",), (target("sm_80"), target("sm_90")), (1, 16), "parhelion build --check")


def test_the_page_shows_counts_reasons_fallbacks_and_resources():
    page = compile_matrix_page([REFUSED, BUILT, SPILLED], ASKED)
    assert "| `f` | 0/1, else `g` | 2/2 |" in page
    assert "| `f` | `f` | sm_80 | 1 | no such type | `g` |" in page
    assert "| `f` | n=1 | 1, 16 | 4 | - | 32 / 2 / 8 |" in page
    assert "| `f_reduce` | n=1 | 1, 16 | 4 | - | 32 / 2 / 8; 24 B |" in page
    assert "2 of 3 programs are built" in page


def test_the_page_does_not_depend_on_time():
    slow = replace(BUILT, seconds=99.0)
    assert compile_matrix_page([BUILT], ASKED) == compile_matrix_page([slow], ASKED)


def test_a_pair_counts_as_built_only_if_all_of_its_programs_are():
    broken = replace(SPILLED, reason="too large")
    assert pairs_built([BUILT, SPILLED]) == {"f(n=1)": ["sm_90"]}
    assert pairs_built([BUILT, broken]) == {"f(n=1)": []}


def test_a_pair_that_stops_building_is_named_with_the_reason():
    expected = pairs_built([BUILT])
    assert regressions(expected, [BUILT, REFUSED], ["sm_80", "sm_90"]) == []
    [line] = regressions(expected, [replace(BUILT, reason="broke")], ["sm_90"])
    assert line == "f(n=1) was built for sm_90 and is not now: broke"
    [line] = regressions(expected, [], ["sm_90"])
    assert "nothing asks for this contract any more" in line
    assert regressions(expected, [], ["sm_80"]) == []


def test_what_builds_is_written_and_read_back(tmp_path: Path):
    file = tmp_path / "expected.json"
    write_expected(file, [BUILT, REFUSED])
    assert read_expected(file) == {"f(n=1)": ["sm_90"]}
    file.write_text("[]")
    with pytest.raises(ConfigError, match="write it with --write-expected"):
        read_expected(file)
