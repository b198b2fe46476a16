"""``bench`` with speculation: the options reach the engine, and the report tells what guesses did."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from parhelion.bench.report import Measurement
from parhelion.bench.server_process import ServerProcess
from parhelion.bench.serving import RequestRecord
from parhelion.cli.main import build_app
from parhelion.config import EngineConfig
from parhelion.platform.measure import summarize
from parhelion.server.metrics import ServerMetrics
from parhelion.types import EngineStats

runner = CliRunner()
OPTIONS = ["--speculate", "draft", "--draft-model", "small", "--num-speculative-tokens", "3"]
UNGUESSED = "no tokens were guessed ahead"


def bench_offline(command: str, quantity: str, options: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command whose measurement is one of that quantity; the engine's options are its ``engine``."""
    opened: list[EngineConfig] = []

    @contextmanager
    def open_llm(engine: EngineConfig) -> Iterator[None]:
        opened.append(engine)
        yield

    measured = [Measurement("a case", quantity, "%", summarize([50.0]))]
    monkeypatch.setattr("parhelion.cli.bench.open_llm", open_llm)
    monkeypatch.setattr(f"parhelion.bench.{command}.measure_{command}", lambda llm, settings, bar: measured)
    result = runner.invoke(build_app(), ["bench", command, "big", "--json", *options])
    assert result.exit_code == 0, result.output
    return SimpleNamespace(engine=opened[0], stderr=result.stderr, report=json.loads(result.stdout))


@pytest.mark.parametrize("command", ["latency", "throughput"])
def test_offline_benchmarks_take_the_options_of_speculation(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = bench_offline(command, "acceptance rate", OPTIONS, monkeypatch)
    assert ran.engine == EngineConfig(model="big", speculate="draft", draft_model="small", num_speculative_tokens=3)
    assert UNGUESSED not in ran.stderr


@pytest.mark.parametrize("command", ["latency", "throughput"])
def test_guesses_that_were_asked_for_and_not_made_are_noted(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        f"--speculate auto: {UNGUESSED}" in bench_offline(command, "TTFT", ["--speculate", "auto"], monkeypatch).stderr
    )
    assert UNGUESSED not in bench_offline(command, "TTFT", [], monkeypatch).stderr


class Load:
    """A run of ``bench serve`` without a server: two scrapes of ``/metrics``, and one request between them."""

    def __init__(self, metrics: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.server_arguments: list[str] = []
        self._metrics = iter(metrics)
        monkeypatch.setattr("parhelion.bench.server_process.running_server", self._running_server)
        monkeypatch.setattr("parhelion.bench.serving.generate_load", self._generate_load)
        monkeypatch.setattr("parhelion.bench.speculation.httpx.get", self._get)

    @contextmanager
    def _running_server(self, model: str, arguments: Sequence[str]) -> Iterator[ServerProcess]:
        self.server_arguments = list(arguments)
        yield ServerProcess("http://fresh", model)

    async def _generate_load(self, url: str, *_: object) -> list[RequestRecord]:
        self.events.append(f"load {url}")
        return [RequestRecord(sent=0.0, chunks=[0.1, 0.2], ended=0.2, output_tokens=2)]

    def _get(self, url: str, **_: object) -> httpx.Response:
        self.events.append(f"get {url}")
        return httpx.Response(200, text=next(self._metrics))

    def run(self, *options: str) -> dict[str, float]:
        """The medians of the report, by quantity."""
        result = runner.invoke(build_app(), ["bench", "serve", "big", "--json", *options])
        assert result.exit_code == 0, result.output
        return {each["quantity"]: each["summary"]["median"] for each in json.loads(result.stdout)["measurements"]}


def metrics_of(guessed: int, accepted: int, rows: int, gain: float) -> str:
    stats = EngineStats(
        guessed_tokens_total=guessed,
        accepted_tokens_total=accepted,
        checked_rows_total=rows,
        speculation_gain=gain,
    )
    return ServerMetrics().render(stats).decode()


def test_a_server_is_started_with_the_options_and_its_guesses_are_those_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    load = Load([metrics_of(100, 100, 10, 2.0), metrics_of(300, 150, 60, 1.3)], monkeypatch)
    figures = load.run(*OPTIONS)
    assert load.server_arguments == OPTIONS
    assert load.events == ["get http://fresh/metrics", "load http://fresh", "get http://fresh/metrics"]
    assert figures["acceptance rate"] == 25.0
    assert figures["mean accepted length"] == 2.0
    assert figures["measured gain"] == 1.3


@pytest.mark.parametrize("metrics", [metrics_of(7, 3, 2, 1.0), "vllm:num_requests_running 1.0\n"])
def test_a_running_server_that_does_not_guess_or_is_another_is_measured_without(
    metrics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Load([metrics, metrics], monkeypatch)
    figures = load.run("--url", "http://there:1/v1")
    assert load.events[0] == "get http://there:1/metrics"
    assert "TTFT" in figures
    assert not {"acceptance rate", "mean accepted length", "measured gain"} & figures.keys()
