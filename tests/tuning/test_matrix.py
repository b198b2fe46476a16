"""The compile matrix of one model: what was built once is built still, and what is not built says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from parhelion.tuning.expected import read_expected, regressions
from parhelion.tuning.matrix import NUM_TOKENS, Build, Task, build_tasks
from parhelion.tuning.model_contracts import SCHEMES, contracts_of_models, reduced, with_uncalled_kinds
from parhelion.tuning.model_shapes import model_shape
from parhelion.tuning.target import target

TARGETS = tuple(map(target, ("sm_90", "sm_80", "gfx942")))
"""Every seventh contract is built for the first, at one size of M; every eleventh for the second, which has no 8-bit
floats, and for the third, of another maker. ``make matrix`` builds all for all targets and sizes, in minutes."""

CONTRACTS = reduced(with_uncalled_kinds(contracts_of_models([model_shape("qwen3-8b")], SCHEMES)))

EXPECTED = Path(__file__).with_name("expected_matrix.json")
AGAIN = "parhelion build --check --model qwen3-8b --quick --write-expected tests/tuning/expected_matrix.json"


@pytest.fixture(scope="module")
def builds() -> list[Build]:
    # Other tests make this process interpret tile programs; the processes that build must not.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELION_INTERPRET", "1")
        norms = [each for each in CONTRACTS if each.name == "rms_norm"]
        others = [each for each in CONTRACTS if each.name != "rms_norm"]
        tasks = [Task(each, TARGETS[0], NUM_TOKENS) for each in norms]
        tasks += [Task(each, TARGETS[0], (16,)) for each in others[::7]]
        for which, to in enumerate(TARGETS[1:]):
            tasks += [Task(each, to, (16,)) for each in CONTRACTS[4 + which :: 11]]
        # One process: each imports Helion, which takes as long as many of the programs.
        return build_tasks([[task] for task in tasks], jobs=1)


@pytest.mark.timeout(600)
def test_what_was_built_is_built_still(builds: list[Build]):
    pairs = {(build.contract, build.target) for build in builds}
    expected = {
        contract: [each for each in targets if (contract, each) in pairs]
        for contract, targets in read_expected(EXPECTED).items()
    }
    lost = regressions(expected, builds, [each.name for each in TARGETS])
    assert not lost, f"if it is meant to be so, run: {AGAIN}"


def test_every_contract_that_was_built_once_is_asked_for():
    assert set(read_expected(EXPECTED)) <= {contract.key() for contract in CONTRACTS}


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
