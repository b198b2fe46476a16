"""What a journal remembers, and what of an old one it refuses and why."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest

from parhelion.errors import ConfigError
from parhelion.packs.format import Fingerprint
from parhelion.platform.measure import summarize
from parhelion.tuning.journal import Compiled, Head, Journal, Step, Timed
from tests.packs import sample

HASHES = {"rms_norm": "a", "linear": "b"}
NORM = "rms_norm(hidden_size=64)"
GEMM = "linear(in_features=64)"


def head(fingerprint: Fingerprint = sample.H100, hashes: dict[str, str] = HASHES, version: str = "3.9") -> Head:
    return Head(fingerprint, hashes, {"triton": version}, "2026-01-01T00:00:00+00:00")


def timed(contract: str = NORM, config: object = None, at_s: float = 1.0) -> Timed:
    summary = summarize([1.0, 2.0, 3.0])
    return Timed(contract, 16, "helion", config, 3, False, summary, 1e-3, None, 64, 0.5, at_s)


def known(journal: Journal, contract: str = NORM, config: object = None) -> Timed | None:
    return journal.timed(contract, 16, "helion", config, 3, False)


def written(path: Path, fingerprint: Head | None = None) -> None:
    with Journal(path, fingerprint or head()) as journal:
        journal.add(timed())
        journal.add(timed(GEMM, {"block_m": 16, "split_k": 2}))
        journal.add(Compiled(NORM, 16, {"num_warps": 4}, None, 8, 2.0, 2.0))
        journal.add(Compiled(NORM, 16, {"num_warps": 8}, "no", 0, 1.0, 3.0))
        journal.add(Step(16, "x", {NORM: 1}, None, 4.0, 7.0))


def test_of_an_ops_two_programs_each_has_its_own_sources(tmp_path: Path):
    hashes = HASHES | {"rms_norm.gluon": "c"}
    one, other = {"num_warps": 4}, {"tile_keys": 64}
    path = tmp_path / "journal.jsonl"
    with Journal(path, head(hashes=hashes)) as journal:
        journal.add(msgspec.structs.replace(timed(), provider="gluon"))
        journal.add(timed(config=one))
        journal.add(Compiled(NORM, 16, one, None, 0, 1.0, provider="helion"))
        journal.add(Compiled(NORM, 16, other, None, 0, 1.0, provider="gluon"))
    with Journal(path, head(hashes=hashes | {"rms_norm.gluon": "d"})) as journal:
        assert journal.notes == [
            f"journal {path}: 2 results are not used: the sources of rms_norm.gluon have changed since"
        ]
        assert known(journal, config=one) is not None
        assert journal.timed(NORM, 16, "gluon", None, 3, False) is None
        assert journal.compiled(NORM, 16, one) is not None
        assert journal.compiled(NORM, 16, other) is None


def test_everything_comes_back(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    written(path)
    with Journal(path, head()) as journal:
        assert journal.notes == []
        assert known(journal) == timed()
        # The order of a config's fields is no matter.
        assert known(journal, GEMM, {"split_k": 2, "block_m": 16}) is not None
        assert known(journal, GEMM, {"split_k": 1, "block_m": 16}) is None
        assert journal.timed(NORM, 16, "helion", None, 20, True) is None
        compiled = journal.compiled(NORM, 16, {"num_warps": 4})
        assert compiled is not None
        assert compiled.stack_bytes == 8
        step = journal.step(16, "x")
        assert step is not None
        assert step.choices == {NORM: 1}
        # As it was written before it was kept.
        assert step.block_us is None
        journal.add(timed(NORM, 1, at_s=5.0))
        assert asdict(journal.totals()) == {
            "tune_s": 12.0,
            "gpu_s": 5.5,
            "compile_s": 3.0,
            "num_compiled": 2,
            "num_dropped": 1,
            "num_timed": 3,
        }


def test_the_time_of_a_block_comes_back(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    with Journal(path, head()) as journal:
        journal.add(Step(16, "x", {NORM: 1}, None, 4.0, 7.0, 30.25))
    with Journal(path, head()) as journal:
        step = journal.step(16, "x")
        assert step is not None
        assert step.block_us == 30.25


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_was_cut_short_is_ignored_and_the_next_one_is_whole(tmp_path: Path, cut: int):
    path = tmp_path / "journal.jsonl"
    written(path)
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, head()) as journal:
        assert known(journal) is not None
        assert journal.step(16, "x") is None
        journal.add(Step(16, "y", None, "failed", 1.0, 1.0))
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert [line["type"] for line in lines][-2:] == ["head", "step"]
    with Journal(path, head()) as journal:
        assert journal.step(16, "y") is not None


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (head(sample.H200), "they are of NVIDIA H100 80GB HBM3 (132 processors), and this is NVIDIA H200 (132)"),
        (head(version="3.10"), "they were found with another version of triton"),
    ],
)
def test_what_another_device_or_version_found_is_not_used(tmp_path: Path, now: Head, why: str):
    path = tmp_path / "journal.jsonl"
    written(path)
    with Journal(path, now) as journal:
        assert known(journal) is None
        assert journal.notes == [f"journal {path}: 5 results are not used: {why}"]
        assert journal.totals().num_timed == 0


def test_what_changed_sources_found_is_not_used_and_the_rest_is(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    written(path)
    with Journal(path, head(hashes=HASHES | {"linear": "c"})) as journal:
        assert known(journal) is not None
        assert known(journal, GEMM, {"block_m": 16, "split_k": 2}) is None
        assert journal.step(16, "x") is None
        assert journal.notes == [f"journal {path}: 2 results are not used: the sources of linear have changed since"]


def test_another_bandwidth_is_no_other_device(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    written(path)
    with Journal(path, head(msgspec.structs.replace(sample.H100, bandwidth=2.9e12))) as journal:
        assert known(journal) is not None


def test_a_journal_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "journal.jsonl").mkdir()
    with pytest.raises(ConfigError, match=r"the journal .*journal\.jsonl cannot be used: .*name another --output"):
        Journal(tmp_path / "journal.jsonl", head())
