"""What benchmarks report of guesses: only where there were any, and of the measured rounds alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from parhelion.bench.latency import LatencySettings, measure_latency
from parhelion.bench.report import Measurement
from parhelion.bench.speculation import read_guess_counts, summarize_guesses
from parhelion.bench.throughput import ThroughputSettings, measure_throughput
from parhelion.server.metrics import ServerMetrics
from parhelion.types import CompletionOutput, EngineStats, RequestOutput

NAMES = ["acceptance rate", "mean accepted length", "measured gain"]


class GuessingLLM:
    """Guesses so many tokens with every request, of which it has so many right, in rows of ten guesses."""

    def __init__(self, guesses: Sequence[tuple[int, int]]) -> None:
        self.tokenizer = SimpleNamespace(vocab_size=1000)
        self._guesses = iter(guesses)
        self._stats = EngineStats(guessed_tokens_total=1000, accepted_tokens_total=1000, checked_rows_total=100)

    def stats(self) -> EngineStats:
        return self._stats

    def generate(self, prompts: Sequence[object], params: object, *, progress: object) -> None:
        for _ in prompts:
            guessed, accepted = next(self._guesses)
            self._stats = replace(
                self._stats,
                guessed_tokens_total=self._stats.guessed_tokens_total + guessed,
                accepted_tokens_total=self._stats.accepted_tokens_total + accepted,
                checked_rows_total=self._stats.checked_rows_total + guessed // 10,
                speculation_gain=1.5,
            )

    def stream(self, prompt: object, params: object) -> Iterator[RequestOutput]:
        self.generate([prompt], params, progress=None)
        yield RequestOutput("0", None, [1], [CompletionOutput(0, token_ids=[1, 2])], finished=True)


def medians(measurements: Sequence[Measurement]) -> dict[str, tuple[float, str, int]]:
    return {m.quantity: (m.summary.median, m.unit, m.summary.count) for m in measurements}


def test_latency_reports_the_guesses_of_the_measured_requests() -> None:
    llm: Any = GuessingLLM([(100, 100), (100, 50), (200, 100)])
    settings = LatencySettings(prompt_lengths=(4,), output_lengths=(2,), rounds=2)
    found = medians(measure_latency(llm, settings))
    assert found["acceptance rate"] == (50.0, "%", 2)
    assert found["mean accepted length"] == (6.0, "tokens", 2)
    assert found["measured gain"] == (1.5, "x", 2)


def test_throughput_reports_the_guesses_of_the_measured_rounds() -> None:
    llm: Any = GuessingLLM([(100, 100)] * 2 + [(100, 20), (100, 30)])
    found = medians(measure_throughput(llm, ThroughputSettings(2, 4, 2, rounds=1)))
    assert found["acceptance rate"] == (25.0, "%", 1)
    assert found["mean accepted length"] == (3.5, "tokens", 1)


def test_nothing_is_reported_of_guesses_that_were_not_made() -> None:
    llm: Any = GuessingLLM([(0, 0)] * 6)
    assert not set(NAMES) & set(medians(measure_latency(llm, LatencySettings((4,), (2,), rounds=1))))
    assert not set(NAMES) & set(medians(measure_throughput(llm, ThroughputSettings(2, 4, 2, rounds=1))))


def test_rounds_without_guesses_do_not_count() -> None:
    counts = EngineStats(guessed_tokens_total=8, accepted_tokens_total=2, checked_rows_total=4)
    measurements = summarize_guesses("a case", [EngineStats(), counts, EngineStats()])
    assert [(m.case, m.quantity, m.summary.count) for m in measurements] == [("a case", name, 1) for name in NAMES]
    assert [m.summary.median for m in measurements] == [25.0, 1.5, 1.0]


def answer_with(monkeypatch: pytest.MonkeyPatch, text: str, status: int = 200) -> list[httpx.Request]:
    """Let every address answer like this; the requests are collected."""
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(status, text=text)

    client = httpx.Client(transport=httpx.MockTransport(handle))
    monkeypatch.setattr(
        "parhelion.bench.speculation.httpx.get",
        lambda url, *, headers, timeout, trust_env: client.get(url, headers=headers, timeout=timeout),
    )
    return seen


def test_the_counts_of_a_server_are_those_of_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    stats = EngineStats(
        guessed_tokens_total=123_456_789, accepted_tokens_total=300, checked_rows_total=40, speculation_gain=1.25
    )
    seen = answer_with(monkeypatch, ServerMetrics().render(stats).decode())
    assert read_guess_counts("http://x", "a key") == stats
    assert (str(seen[0].url), seen[0].headers["authorization"]) == ("http://x/metrics", "Bearer a key")


def test_a_parhelion_that_has_not_guessed_yet_has_counts_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, ServerMetrics().render(EngineStats(num_running=3)).decode())
    assert read_guess_counts("http://x") == EngineStats()


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('vllm:spec_decode_num_draft_tokens_total{engine="0"} 5.0\n', 200),
        ("parhelion_guessed_tokens_total 5.0\nparhelion_accepted_tokens_total 5.0\n", 200),
        ("<html>\nparhelion_guessed_tokens_total 5.0\n{{{", 200),
        ('{"error": "not found"}', 404),
    ],
)
def test_other_servers_are_passed_over(text: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, text, status)
    assert read_guess_counts("http://x") is None


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[x"])
def test_a_server_that_does_not_answer_is_passed_over(url: str) -> None:
    assert read_guess_counts(url) is None
