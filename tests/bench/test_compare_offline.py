"""The harness with planted engines: order, figures, refusals, failures, and what is written when."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import psutil
import pytest

from parhelion.bench.compare.device import MemoryMeter
from parhelion.bench.compare.engines import Engine
from parhelion.bench.compare.offline import compare_offline, load_request
from parhelion.bench.compare.results import Comparison
from parhelion.bench.compare.settings import OfflineSettings
from tests.bench.compare_bench import fake, make_bench

SETTINGS = OfflineSettings(
    batches=(1, 4), input_length=8, output_length=5, rounds=2, max_num_batched_tokens=64, timeout_s=30
)


def compared(folder: Path, *engines: Engine, settings: OfflineSettings = SETTINGS) -> Comparison:
    """The comparison as it stands in the file."""
    compare_offline(engines, make_bench(folder, settings))
    return msgspec.json.decode((folder / "out.json").read_bytes(), type=Comparison, strict=True)


def turns(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()]


def test_figures_are_those_of_the_planted_times(tmp_path: Path) -> None:
    result = compared(tmp_path, fake("parhelion", tpot_s=0.01), fake("vllm", prefill_s=0.8, tpot_s=0.04))
    assert [row.batch for row in result.rows] == [1, 4]
    row = result.rows[1]
    assert row.tpot_ms == pytest.approx({"parhelion": 10.0, "vllm": 40.0})
    assert row.prefill_ms == pytest.approx({"parhelion": 500.0, "vllm": 800.0})
    assert row.tpot_ratio["vllm"].median == pytest.approx(4.0)
    assert row.prefill_ratio["vllm"].median == pytest.approx(1.6)
    assert row.output_tokens_per_s["vllm"] == pytest.approx(4 * 5 / 0.96)
    assert row.total_tokens_per_s["vllm"] == pytest.approx(4 * 13 / 0.96)
    assert row.floor_ms is not None
    assert row.of_floor["vllm"] == pytest.approx(row.floor_ms / 40.0)
    assert row.prefill_floor_ms is not None
    assert 0 < row.prefill_floor_ms < 500.0
    assert not row.refused
    assert {len(rounds) for rounds in row.samples.values()} == {2}


def test_both_are_alive_and_take_turns_by_batch_and_round(tmp_path: Path) -> None:
    order = tmp_path / "order"
    compared(tmp_path, fake("parhelion", order=order), fake("vllm", order=order))
    seen = turns(order)
    # Each engine's first token, after its start.
    assert [turn[0] for turn in seen[:2]] == ["parhelion", "vllm"]
    # A round is A's first token and whole output, then B's, with the same seeds.
    one = [("parhelion", "1"), ("parhelion", "5"), ("vllm", "1"), ("vllm", "5")]
    assert [(name, length) for name, _batch, length, _seed in seen[2:]] == one * 6
    assert [turn[1] for turn in seen[2:]] == ["1"] * 12 + ["4"] * 12
    seeds = [[seed for other, _b, _l, seed in seen if other == name] for name in ("parhelion", "vllm")]
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 7


def test_one_after_the_other_when_asked_for(tmp_path: Path) -> None:
    order = tmp_path / "order"
    settings = replace(SETTINGS, sequential=True)
    result = compared(tmp_path, fake("parhelion", order=order), fake("vllm", order=order), settings=settings)
    names = [turn[0] for turn in turns(order)]
    assert names == sorted(names)
    assert result.rows[0].tpot_ratio["vllm"].median == pytest.approx(1.0)


def test_no_ratio_where_a_peer_generated_fewer_tokens(tmp_path: Path) -> None:
    row = compared(tmp_path, fake("parhelion"), fake("vllm", "short")).rows[1]
    assert "vllm" not in row.tpot_ratio
    assert "vllm generated 19 tokens in round 1 where 20 were asked for" in row.refused["vllm"]
    assert row.tpot_ms["vllm"] == pytest.approx(10.0)


def test_a_peer_that_dies_is_named_with_its_log_and_the_other_is_measured(tmp_path: Path) -> None:
    result = compared(tmp_path, fake("parhelion"), fake("vllm", "crash"))
    errors = {row.engine: row.error for row in result.engines}
    assert errors["parhelion"] is None
    assert "vllm ended with status 3 when asked to generate" in str(errors["vllm"])
    assert "out of memory" in str(errors["vllm"])
    assert "tiny-vllm.log" in str(errors["vllm"])
    assert list(result.rows[0].tpot_ms) == ["parhelion", "vllm"]
    assert list(result.rows[1].tpot_ms) == ["parhelion"]
    assert not result.rows[1].tpot_ratio


def test_a_peer_that_hangs_is_ended_after_the_timeout(tmp_path: Path) -> None:
    settings = replace(SETTINGS, timeout_s=4.0)
    result = compared(tmp_path, fake("parhelion"), fake("vllm", "hang"), settings=settings)
    error = next(row.error for row in result.engines if row.engine == "vllm")
    assert "did not answer within 4 s (--timeout)" in str(error)
    assert list(result.rows[1].tpot_ms) == ["parhelion"]


def test_a_peer_that_says_no_json_is_given_up(tmp_path: Path) -> None:
    result = compared(tmp_path, fake("parhelion"), fake("vllm", "babble"))
    assert "no answer: b'INFO: not JSON" in str(result.engines[1].error)


def test_a_peer_that_cannot_be_started_is_given_up(tmp_path: Path) -> None:
    result = compared(tmp_path, fake("parhelion"), Engine("vllm", "other", (str(tmp_path / "nowhere"),)))
    assert "vllm cannot be started" in str(next(row.error for row in result.engines if row.engine == "vllm"))
    assert list(result.rows[1].tpot_ms) == ["parhelion"]


def test_a_run_that_is_cut_off_leaves_its_finished_points(tmp_path: Path) -> None:
    def cut_off(text: str) -> None:
        if "batch 4" in text:
            raise KeyboardInterrupt

    bench = make_bench(tmp_path, SETTINGS, say=cut_off)
    before = set(psutil.Process().children())
    with pytest.raises(KeyboardInterrupt):
        compare_offline([fake("parhelion"), fake("vllm")], bench)
    assert set(psutil.Process().children()) <= before
    result = msgspec.json.decode((tmp_path / "out.json").read_bytes(), type=Comparison)
    assert [row.batch for row in result.rows] == [1]
    assert set(result.cold_start_s) == {"parhelion", "vllm"}


def test_the_file_has_the_form_that_its_readers_expect(tmp_path: Path) -> None:
    compared(tmp_path, fake("parhelion"), fake("vllm"))
    raw = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    assert {"device", "versions", "command", "settings", "rows", "cold_start_s", "peak_gib", "online"} <= set(raw)
    for name in ("tpot_ms", "prefill_ms"):
        assert {type(value) for value in raw["rows"][0][name].values()} == {float}
        assert set(raw["rows"][0][name]) == set(raw["rows"][0][f"{name}_range"]) == {"parhelion", "vllm"}
    assert set(raw["cold_start_s"]) == {"parhelion", "vllm"}
    assert raw["versions"]["vllm"] == {"fake": "1"}
    assert raw["engines"][0]["facts"]["kernels"] == ["rms_norm=fake"]
    assert raw["engines"][0]["kv_cache_gib"] == 1.0
    assert raw["peak_gib"] == {}
    assert not list(tmp_path.glob("*.part"))


def test_memory_that_grew_during_an_engines_turn_is_charged_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Before and after each of: two loads, then one batch of two rounds by two engines.
    used = iter([0, 8, 8, 18, 18, 19, 19, 19, 19, 19, 19, 21])
    monkeypatch.setattr(MemoryMeter, "used_bytes", lambda _self: next(used) << 30)
    settings = replace(SETTINGS, batches=(1,), rounds=1)
    result = compared(tmp_path, fake("parhelion"), fake("vllm"), settings=settings)
    assert result.peak_gib == {"parhelion": 9.0, "vllm": 12.0}


def test_every_engine_is_told_the_same_and_has_room_for_every_sequence(tmp_path: Path) -> None:
    load = load_request(make_bench(tmp_path, SETTINGS))
    assert load.max_num_seqs == 4
    assert load.max_model_len == 16 >= SETTINGS.input_length + SETTINGS.output_length
    # Keys and values of 2 heads of 64 in 3 layers, in float32 on a CPU, for 4 sequences of a block and a spare one.
    assert load.kv_cache_memory >= 4 * 32 * (2 * 3 * 2 * 64 * 4)
    assert load.memory_share < 0.5
