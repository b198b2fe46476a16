"""What the report computes from packs, results and matrices."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import msgspec
import pytest

from parhelion.errors import ConfigError
from parhelion.packs.format import Ledger
from parhelion.tuning.matrix import Build
from parhelion.tuning.report.collect import make_report
from parhelion.tuning.report.data import Gap, MatrixCell, Point, Report, Size, to_json
from parhelion.tuning.report.matrix_file import read_matrix
from parhelion.tuning.report.payback import saved_us
from tests.tuning.report_packs import LINEAR, RMS_NORM, pack, row

EXPECTED = Path(__file__).with_name("expected_matrix.json")
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def timing(contract: str, num_tokens: int, provider: str, time_us: float | None, floor_us: float = 1.0) -> dict:
    record = {"contract": contract, "num_tokens": num_tokens, "provider": provider, "floor_us": floor_us}
    if time_us is None:
        return record | {"problem": "no time was left"}
    return record | {"time_us": {"median": time_us, "p10": time_us, "p90": time_us, "count": 12}}


def ops_result(*records: dict, **changes: object) -> dict:
    return {
        "command": "python benchmarks/h100_ops.py",
        "measured_at": "2026-01-02T03:04:05+00:00",
        "device": "NVIDIA H100",
        "capability": [9, 0],
        "cuda": "13.0",
        "versions": {"torch": "2.11.0"},
        "ceilings": {"device": "NVIDIA H100", "bandwidth": 3.02e12, "float8": 1.54e15, "int8": None},
        "timing": list(records),
    } | changes


def score_of(report: Report, op: str, provider: str = "helion", sizes: str = "all"):
    [score] = [each for each in report.scores if (each.op, each.provider, each.sizes) == (op, provider, sizes)]
    return score


def test_the_json_becomes_an_equal_report_again(tmp_path: Path):
    (tmp_path / "ops.json").write_text(json.dumps(ops_result(timing(RMS_NORM, 1, "helion", 2.0))))
    report = make_report([pack(row(RMS_NORM, 1, 1.0, helion=2.0, torch=3.0))], tmp_path, EXPECTED)
    assert len(report.figures) == 2
    assert report.matrix is not None
    assert msgspec.json.decode(to_json(report), type=Report) == report


def test_a_packs_rows_become_points_sizes_and_who_serves():
    report = make_report(
        [pack(row(RMS_NORM, 16, 2.0, torch=3.0, helion=4.0, inductor=2.5), row(RMS_NORM, 1, 1.0, helion=2.0))]
    )
    [figure] = report.figures
    assert (figure.op, figure.source, figure.device) == ("rms_norm", "h100-sxm", "NVIDIA H100")
    assert figure.sizes == (Size(1, 1.0, "helion"), Size(16, 2.0, "torch"))
    assert [(point.provider, point.num_tokens) for point in figure.points] == [
        ("helion", 1),
        ("helion", 16),
        ("inductor", 16),
        ("torch", 16),
    ]
    assert figure.points[0] == Point(1, "helion", 2.0, 2.0 * 0.9, 2.0 * 1.2)


def test_of_a_providers_configs_the_fastest_is_kept():
    slow = row(RMS_NORM, 1, 1.0, helion=5.0)
    both = msgspec.structs.replace(row(RMS_NORM, 1, 1.0, helion=2.0), runners_up=(slow.best,))
    [figure] = make_report([pack(both)]).figures
    assert [point.time_us for point in figure.points] == [2.0]


@pytest.mark.parametrize("missing", [{"measured_at": 0}, {"best": row(RMS_NORM, 1, 1.0, helion=0.0).best}])
def test_a_row_that_was_not_measured_is_no_point_but_a_gap(missing: dict):
    unmeasured = msgspec.structs.replace(row(RMS_NORM, 64, 1.0, helion=2.0), chosen_by="seed", **missing)
    report = make_report([pack(unmeasured)])
    assert report.figures == ()
    assert report.gaps == (
        Gap("h100-sxm", RMS_NORM, "helion", (64,), "serves without having been measured; chosen by: seed"),
    )


def test_tuning_pays_back_by_the_formula():
    rows = [
        row(RMS_NORM, 1, 1.0, helion=2.0, inductor=2.5, torch=4.0),
        row(LINEAR, 1, 1.0, torch=6.0, helion=7.0),
        row(LINEAR, 16, 1.0, helion=6.0),
    ]
    assert [saved_us(each) for each in rows] == [0.5, 0.0, None]
    [cost] = make_report([pack(*rows)]).costs
    one, sixteen = cost.paybacks
    # Two hours of tuning; a round of 8 us saves 0.5 us.
    assert (one.num_tokens, one.rows, one.without_rival, one.round_us, one.saved_us) == (1, 2, 0, 8.0, 0.5)
    assert one.gpu_hours == 2 * 8.0 / 0.5
    assert (sixteen.rows, sixteen.without_rival, sixteen.gpu_hours) == (0, 1, None)


def test_a_pack_without_a_ledger_costs_what_its_rows_say():
    [cost] = make_report(
        [pack(row(RMS_NORM, 1, 1.0, helion=2.0), row(LINEAR, 1, 1.0, helion=2.0), ledger=Ledger())]
    ).costs
    assert cost.tune_s == 60.0


def test_binaries_that_share_a_file_are_counted_once_in_bytes():
    [cost] = make_report([pack()]).costs
    assert (cost.num_binaries, cost.binary_bytes) == (2, 2048)


def test_portability_is_the_harmonic_mean_over_devices():
    here = pack(row(RMS_NORM, 1, 1.0, helion=2.0), row(RMS_NORM, 512, 8.0, helion=10.0))
    there = pack(row(RMS_NORM, 1, 1.0, torch=3.0, helion=4.0), name="mi300x", device="MI300X")
    report = make_report([here, there])
    helion = score_of(report, "rms_norm")
    # Only M = 1 is common to both: 1/2 and 1/4.
    assert [each.of_floor for each in helion.fractions] == [0.5, 0.25]
    assert helion.score == pytest.approx(2 / (2 + 4))
    assert (helion.problems, helion.measured) == (1, 2)
    assert score_of(report, "rms_norm", "serving").score == pytest.approx(2 / (2 + 3))
    assert score_of(report, "rms_norm", sizes="prefill").score is None
    assert score_of(report, "").score == helion.score


def test_portability_is_0_where_a_device_cannot_run_the_op_and_so_it_is_for_all_ops():
    here = pack(row(RMS_NORM, 1, 1.0, helion=2.0), row(LINEAR, 1, 1.0, helion=2.0))
    there = pack(row(RMS_NORM, 1, 1.0, torch=2.0), row(LINEAR, 1, 1.0, helion=2.0), name="other", device="other")
    report = make_report([here, there])
    assert score_of(report, "rms_norm").score == 0.0
    assert [each.of_floor for each in score_of(report, "rms_norm").fractions] == [0.5, None]
    assert score_of(report, "linear").score == 0.5
    assert score_of(report, "").score == 0.0
    assert score_of(report, "", "serving").score == 0.5


def test_one_device_has_no_portability():
    twice = [pack(row(RMS_NORM, 1, 1.0, helion=2.0)), pack(row(RMS_NORM, 1, 1.0, helion=4.0), name="again")]
    report = make_report(twice)
    assert score_of(report, "rms_norm").score is None
    assert [each.of_floor for each in score_of(report, "rms_norm").fractions] == [0.5]


def test_a_benchmarks_fastest_serves_unless_it_compiles_while_serving(tmp_path: Path):
    records = [
        timing(RMS_NORM, 1, provider, time) for provider, time in [("inductor", 1.5), ("helion", 2.0), ("torch", 3.0)]
    ]
    (tmp_path / "ops.json").write_text(json.dumps(ops_result(*records, timing(RMS_NORM, 16, "torch", None))))
    report = make_report([], tmp_path)
    [figure] = report.figures
    assert figure.sizes == (Size(1, 1.0, "helion"),)
    assert report.gaps == (Gap("ops.json", RMS_NORM, "torch", (16,), "no time was left"),)
    [source] = report.sources
    assert (source.target, source.versions) == ("sm_90", {"torch": "2.11.0", "cuda": "13.0"})
    assert source.notes == ("copies at 3.020 TB/s", "float8 at 1540 TFLOP/s")


def test_a_capability_is_a_target_only_with_cuda(tmp_path: Path):
    (tmp_path / "ops.json").write_text(json.dumps(ops_result(cuda=None, capability=[9, 4])))
    assert make_report([], tmp_path).sources[0].target == ""


def test_the_results_of_this_repository_are_read():
    report = make_report([], RESULTS)
    [engine] = [source for source in report.sources if source.name == "h100_engine.json"]
    assert any("checks passed" in note for note in engine.notes)
    assert "memory.json holds no times of kernels" in report.skipped
    assert "h100_tune.json is of a tuner, whose times are those of its pack" in report.skipped


@pytest.mark.parametrize("content", ['{"timing": 1}', "{", '{"parts": {"device": 1}}'])
def test_a_damaged_result_is_named(tmp_path: Path, content: str):
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(ConfigError, match=r"broken\.json is no benchmark's result .*; measure it again or remove it"):
        make_report([], tmp_path)


def test_a_folder_without_results_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no result"):
        make_report([], tmp_path / "missing")


def test_a_matrix_of_builds_counts_programs_and_says_who_serves_instead(tmp_path: Path):
    built = Build("f", "f(n=1)", "f", "sm_90", (1,))
    refused = Build("f", "f(n=1)", "f", "sm_80", (1,), "no such type", "g")
    file = tmp_path / "matrix.json"
    file.write_text(json.dumps([asdict(built), asdict(built), asdict(refused)]))
    matrix = read_matrix(file)
    assert (matrix.counts, matrix.targets) == ("programs", ("sm_90", "sm_80"))
    assert matrix.cells == (
        MatrixCell("f", "sm_90", 2, 2),
        MatrixCell("f", "sm_80", 0, 1, ("g",), ("no such type",)),
    )


def test_a_matrix_of_pairs_counts_contracts():
    matrix = read_matrix(EXPECTED)
    assert (matrix.counts, matrix.targets[:2]) == ("contracts", ("sm_80", "sm_89"))
    cells = {(cell.op, cell.target): cell for cell in matrix.cells}
    pairs = json.loads(EXPECTED.read_bytes())
    assert cells["argmax", "sm_80"].total == sum(key.startswith("argmax(") for key in pairs)
    assert cells["dynamic_per_token_scaled_fp8_quant", "sm_80"].built == 0


def test_a_file_that_is_no_matrix_is_refused(tmp_path: Path):
    file = tmp_path / "matrix.json"
    file.write_text("3")
    with pytest.raises(ConfigError, match="write one with: parhelion build --check --json"):
        read_matrix(file)
