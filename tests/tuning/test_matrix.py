"""The compile matrix of one model: what was built once is built still, and what is not built says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from parhelion.tuning.expected import read_expected, regressions
from parhelion.tuning.matrix import Build, build_matrix
from parhelion.tuning.model_contracts import SCHEMES, contracts_of_models, reduced, with_uncalled_kinds
from parhelion.tuning.model_shapes import model_shape
from parhelion.tuning.target import target

TARGETS = tuple(map(target, ("sm_80", "sm_90", "gfx942")))
"""One of either maker and one without 8-bit floats; ``make matrix`` builds for all, in minutes."""

EXPECTED = Path(__file__).with_name("expected_matrix.json")
AGAIN = "parhelion build --check --model qwen3-8b --quick --write-expected tests/tuning/expected_matrix.json"


@pytest.fixture(scope="module")
def builds() -> list[Build]:
    # Other tests make this process interpret tile programs; the processes that build must not.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELION_INTERPRET", "1")
        contracts = reduced(with_uncalled_kinds(contracts_of_models([model_shape("qwen3-8b")], SCHEMES)))
        return build_matrix(contracts, TARGETS, jobs=2)


@pytest.mark.timeout(600)
def test_what_was_built_is_built_still(builds: list[Build]):
    lost = regressions(read_expected(EXPECTED), builds, [each.name for each in TARGETS])
    assert not lost, f"if it is meant to be so, run: {AGAIN}"


def test_every_contract_has_a_row_for_every_target(builds: list[Build]):
    targets = {each.name for each in TARGETS}
    for contract in {build.contract for build in builds}:
        assert {build.target for build in builds if build.contract == contract} == targets


def test_what_is_not_built_says_why_and_what_serves_instead(builds: list[Build]):
    refused = [build for build in builds if not build.built]
    assert refused, "sm_80 has no 8-bit floats, so some programs cannot be built for it"
    for build in refused:
        assert build.reason
        assert build.instead
    assert any("fp8e4nv not supported" in (build.reason or "") for build in refused if build.target == "sm_80")


def test_what_is_built_fits_its_target(builds: list[Build]):
    limits = {each.name: each.max_shared_bytes for each in TARGETS}
    for build in builds:
        if build.built:
            assert 0 < build.registers <= 512
            assert build.shared_bytes <= limits[build.target]
            assert build.binary_bytes > 0


def test_one_token_runs_the_program_of_any_number_of_tokens(builds: list[Build]):
    sizes = {build.num_tokens for build in builds if build.op == "rms_norm" and build.target == "sm_90"}
    assert (1, 16) in {each[:2] for each in sizes}
