"""The benchmark of tuning, without a GPU: what it takes from a pack and compares, and that it writes as it goes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.scaled_mm import ScaledMm
from parhelion.packs.format import Candidate, ModelEntry, Row
from parhelion.packs.store import write_pack
from parhelion.platform.measure import summarize
from parhelion.tuning.helion_search import FullEffort, HelionSearchError
from parhelion.tuning.programs import plain
from tests.packs import sample

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GEMM = ScaledMm(256, 128, torch.float8_e4m3fn, torch.bfloat16)
CONFIG = plain(GemmConfig(16, 64, 128))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import h100_tune

    return h100_tune


def candidate(provider: str, time_us: float, *binaries: str) -> Candidate:
    return Candidate(provider, CONFIG if provider == "helion" else None, time_us, time_us, time_us, binaries)


def gemm_row(num_tokens: int, *candidates: Candidate) -> Row:
    best, *others = candidates
    return sample.row(
        num_tokens, GEMM.key(), op="scaled_mm", best=best, runners_up=tuple(others), measured_at=num_tokens
    )


TILES = candidate("helion", 4.0, "rms_norm.cubin")
ROWS = (
    gemm_row(1, TILES, candidate("torch", 6.0), candidate("helion", 4.5), candidate("torch", 5.0)),
    gemm_row(16, candidate("torch", 3.0), TILES),
    gemm_row(64, candidate("torch", 3.0), candidate("helion", 3.5), TILES),
    sample.row(8, RmsNorm(4096).key(), measured_at=8),
)


def test_rows_have_their_shape_and_the_best_time_of_every_rival(script: Any):
    rows = script.tuned_rows([*ROWS, sample.row(4, GEMM.key(), op="scaled_mm", measured_at=0)])
    assert len(rows) == len(ROWS)
    assert (rows[0].m, rows[0].k, rows[0].n) == (1, 256, 128)
    assert rows[0].rivals == {"torch": 5.0}
    assert rows[1].provider == "torch"
    assert rows[1].rivals == {"helion": 4.0}
    assert (rows[3].op, rows[3].k, rows[3].n) == ("rms_norm", None, None)


def test_rows_are_sampled_evenly_whatever_serves_them(script: Any):
    entry = ModelEntry("a-model", "fp8_per_token", (GEMM.key(),))
    rows = script.rows_of(sample.pack(rows=ROWS, models=(entry,)), "a-model", (1,))
    assert rows == list(ROWS[:3])
    assert script.rows_of(sample.pack(rows=ROWS, models=(entry,)), "a-model", (2,)) == []
    assert script.sampled(ROWS, 5) == list(ROWS[:3])
    assert script.sampled(ROWS, 0) == []
    many = [gemm_row(1 << power, TILES) for power in range(8)]
    assert [row.num_tokens for row in script.sampled(many, 4)] == [2, 8, 32, 128]
    assert len({id(row) for row in script.sampled(many, 7)}) == 7


def test_it_writes_what_it_has_before_it_fails(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pack, output = tmp_path / "pack.zip", tmp_path / "result.json"
    entry = ModelEntry("qwen3-8b", "fp8_per_token", (GEMM.key(),))
    write_pack(sample.pack(rows=ROWS, models=(entry,)), sample.FILES, pack)
    found = FullEffort(summarize([3.5]), "whole: a config", 12.0, 2, ("one of them failed",))
    answers = iter([found, HelionSearchError("it did not end")])

    def search(contract: Any, num_tokens: int, seconds: float, device: str, kernels: list[str]) -> FullEffort:
        assert (contract, seconds, device, kernels) == (GEMM, 7.0, "cpu", ["whole"])
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(script, "full_effort_search", search)
    asked: list[list[str]] = []

    def timed_again(stored: Any, row: Row, candidates: list[Candidate], device: str) -> list[Any]:
        asked.append([candidate.provider for candidate in candidates])
        return [script._Again(4.25 + number, None) for number in range(len(candidates))]

    monkeypatch.setattr(script, "_timed_again", timed_again)
    options = ["--skip-tune", "--pack", str(pack), "--output", str(output), "--device", "cpu"]
    options += ["--full-effort-rows", "2", "--full-effort-seconds", "7", "--full-effort-kernels", "whole"]
    monkeypatch.setattr(sys, "argv", ["h100_tune.py", *options])
    script.main()
    result = json.loads(output.read_text())
    assert result["device"] == sample.H100.device
    assert result["tune_s"] == sample.pack().ledger.tune_s
    assert len(result["rows"]) == 3
    first, second = result["full_effort"]
    assert (first["m"], first["k"], first["n"]) == (1, 256, 128)
    assert (first["found_us"], first["tile_us"], first["full_us"]) == (4.25, 4.25, 3.5)
    assert first["full_config"] == "whole: a config"
    assert (first["searches"], first["problem"]) == (2, "one of them failed")
    assert (second["provider"], second["found_us"], second["tile_us"]) == ("torch", 4.25, 5.25)
    assert asked == [["helion"], ["torch", "helion"]]
    assert second["full_us"] is None
    assert second["problem"] == "it did not end"


def test_the_best_of_several_searches_counts_and_their_time_is_added_up(script: Any):
    from full_effort_table import Comparison, full_effort_lines

    def search(m: int, found_us: float, full_us: float | None, full_s: float) -> Comparison:
        times = (found_us, found_us, full_us, 1.0, full_s)
        return Comparison("scaled_mm", m, 4096, 6144, "helion", *times, 1, None, "")

    lines = full_effort_lines([search(16, 10.0, 8.0, 300), search(2, 6.0, 9.0, 120), search(2, 6.3, 7.0, 200)])
    assert lines[2:] == [
        "| 2, 4096 x 6144 | helion | 6.3 | 6.3 | 7.0 | 320 s | 0.90 |",
        "| 16, 4096 x 6144 | helion | 10.0 | 10.0 | 8.0 | 300 s | 1.25 |",
        "| geometric mean, highest | | | | | | 1.06, 1.25 |",
    ]
    assert full_effort_lines([search(2, 6.0, None, 300)]) == []
