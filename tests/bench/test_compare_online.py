"""Servers side by side: what they are told, what is measured of two real ones, and what happens when one fails."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from parhelion.bench.compare.checkpoint import compared_model, write_config, write_tokenizer
from parhelion.bench.compare.driver import RunnerError
from parhelion.bench.compare.engines import ours, peer, running_peer
from parhelion.bench.compare.online import compare_online, rates_from
from parhelion.bench.compare.results import LoadFigures, OnlineRow, spread
from parhelion.bench.compare.run import Plan
from parhelion.bench.compare.servers import ServerOptions, served_model, server_command
from parhelion.bench.compare.settings import OfflineSettings, OnlineSettings
from parhelion.errors import ConfigError
from tests.bench.compare_bench import SMALL, make_bench

SETTINGS = OfflineSettings(
    batches=(2,), input_length=8, output_length=4, rounds=1, max_num_batched_tokens=64, timeout_s=90, device="cpu"
)
ONLINE = OnlineSettings(
    num_requests=4, concurrency=2, ttft_limit_ms=1e6, tpot_limit_ms=1e6, stricter_tpot_limits_ms=(1e5, 1e-6)
)


def figures(requests_per_s: float) -> LoadFigures:
    return LoadFigures(*[spread([1.0])] * 9, spread([requests_per_s]), *[spread([1.0])] * 3, 0)


def test_two_real_servers_under_a_closed_and_three_open_loops(tmp_path: Path) -> None:
    model = compared_model(str(write_config(SMALL, tmp_path / "small", None)), tmp_path)
    write_tokenizer(model.folder, model.shape.vocab_size)
    bench = make_bench(tmp_path, SETTINGS, model)
    compare_online([ours(), peer("parhelion")], bench, ONLINE)
    rows = bench.recorder.comparison.online
    assert [row.errors for row in rows] == [{}] * 4
    assert [row.load for row in rows] == ["closed", "open", "open", "open"]
    slowest = min(each.requests_per_s.median for each in rows[0].engines.values())
    assert [row.rate for row in rows[1:]] == pytest.approx([share * slowest for share in (0.3, 0.7, 1.1)], rel=0.01)
    for row in rows:
        assert set(row.engines) == {"parhelion", "parhelion-peer"}
        for each in row.engines.values():
            assert each.failed == 0
            # Every request keeps limits as wide as these.
            assert each.good_share.median == 1.0
            assert each.goodput_per_s.median == pytest.approx(each.requests_per_s.median)
            assert each.output_tokens_per_s.median == pytest.approx(4 * each.requests_per_s.median)
            assert 0 < each.ttft_ms_p50.median <= each.ttft_ms_p99.median
            assert each.tpot_ms_p50.median > 0
            # All keep a limit that is hardly stricter, and none one that nobody can keep.
            assert each.stricter["100000"] == each.goodput_per_s
            assert each.stricter["1e-06"].median == 0


def test_a_server_that_cannot_start_is_named_and_the_other_is_not_asked_to_wait(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, SETTINGS)
    compare_online([peer("vllm", sys.executable, str(tmp_path))], bench, ONLINE)
    (row,) = bench.recorder.comparison.online
    assert "the server of vllm ended with status 1 before it answered" in row.errors["vllm"]
    assert "No module named" in row.errors["vllm"]
    assert row.engines == {}


def test_every_server_is_told_the_same(tmp_path: Path) -> None:
    options = ServerOptions(compared_model("tiny", tmp_path), SETTINGS, 16, 1 << 20, 0.45, "cuda", tmp_path)
    commands = [server_command(engine, options, 81) for engine in (ours(), peer("vllm", "/opt/peer/python"))]
    assert commands[1][:4] == ["/opt/peer/python", "-m", "vllm.entrypoints.cli.main", "serve"]
    for words in commands:
        told = " ".join(words)
        for option in (
            "--port 81",
            "--load-format dummy",
            "--no-enable-prefix-caching",
            "--max-model-len 16",
            "--max-num-seqs 16",
            "--max-num-batched-tokens 64",
        ):
            assert option in told
    assert "--kv-cache-memory 1048576" in " ".join(commands[0])
    assert "--kv-cache-memory-bytes 1048576" in " ".join(commands[1])
    assert "--graphs startup" in " ".join(commands[0])


def test_rates_come_from_the_slowest_server() -> None:
    row = OnlineRow("m", "closed", 8, None, {"parhelion": figures(20.0), "vllm": figures(10.0)}, {})
    assert rates_from(row) == [3.0, 7.0, 11.0]
    assert rates_from(replace(row, engines={})) == []


def test_a_running_server_is_asked_which_model_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = running_peer("http://10.0.0.1:9/v1/")
    assert (engine.name, engine.url) == ("10.0.0.1:9", "http://10.0.0.1:9")

    def answer(url: str, **_options: object) -> httpx.Response:
        assert url == "http://10.0.0.1:9/v1/models"
        return httpx.Response(200, json={"data": [{"id": "served"}]}, request=httpx.Request("GET", url))

    monkeypatch.setattr(httpx, "get", answer)
    assert served_model(engine.name, str(engine.url)) == "served"


def test_a_server_that_is_not_there_is_an_error_with_its_address() -> None:
    with pytest.raises(RunnerError, match=r"x does not say which model it serves at http://127\.0\.0\.1:1/v1/models"):
        served_model("x", "http://127.0.0.1:1")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plan(()), "there must be a peer"),
        (lambda: Plan((peer("vllm"), peer("vllm"))), "none twice"),
        (lambda: Plan((running_peer("http://h:1"),)), "only be compared through its server: pass --mode online"),
        (lambda: Plan((peer("vllm"),), offline=replace(SETTINGS, sequential=True)), "give the rates"),
    ],
)
def test_plans_that_cannot_be_carried_out_are_refused(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
