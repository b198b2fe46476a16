"""``parhelion bench compare`` as a user meets it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from parhelion.bench.compare.results import Comparison
from parhelion.bench.compare.run import Plan
from parhelion.cli.main import build_app
from tests.bench.compare_bench import make_bench

runner = CliRunner()


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def invoke(*arguments: str):
    return runner.invoke(build_app(), ["bench", "compare", *arguments])


def test_help_has_an_example_and_says_which_peers_need_a_server() -> None:
    text = " ".join(invoke("--help").output.split())
    assert "Example: parhelion bench compare --peer vllm" in text
    assert "SGLang and TensorRT-LLM can only be compared through a server" in text
    for option in ("--peer-python", "--peer-path", "--sequential", "--rate", "--ttft-limit", "--plot", "--json"):
        assert option in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peer", "sglang"], "sglang has no offline runner here"),
        (["--mode", "fast"], "--mode is 'fast'; it must be one of offline, online, both"),
        (["--batches", "1,x"], "--batches is '1,x'"),
        (["--stricter-tpot-limits", "5;2"], "--stricter-tpot-limits is '5;2'"),
        (["--url", "http://h:1"], "pass --mode online"),
        (["--sequential"], "give the rates (--rate)"),
        (["--mode", "offline", "--model", "nothing"], "'nothing' is neither a model known here"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_starts(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())


def test_options_reach_the_plan_and_results_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def measured(plan: Plan, output: Path | None, _say: object) -> Comparison:
        plans.append(plan)
        bench = make_bench(tmp_path, plan.offline, online=plan.online)
        return bench.recorder.comparison

    monkeypatch.setattr("parhelion.bench.compare.run.compare", measured)
    plot = tmp_path / "plot.svg"
    result = invoke(
        *["--model", "tiny", "--batches", "2,8", "--rounds", "1", "--input-length", "9", "--output-length", "7"],
        *["--peer-python", "/opt/py", "--peer-path", "/opt/site", "--rate", "2.5", "--ttft-limit", "300"],
        *["--tpot-limit", "20", "--stricter-tpot-limits", "5,2.5", "--pack", "off", "--plot", str(plot), "--json"],
    )
    assert result.exit_code == 0, result.output
    (plan,) = plans
    assert plan.models == ("tiny",)
    assert (plan.offline.batches, plan.offline.input_length, plan.offline.output_length) == ((2, 8), 9, 7)
    assert plan.offline.pack == "off"
    assert plan.online.rates == (2.5,)
    assert (plan.online.ttft_limit_ms, plan.online.tpot_limit_ms) == (300.0, 20.0)
    assert plan.online.stricter_tpot_limits_ms == (5.0, 2.5)
    (vllm,) = plan.peers
    assert vllm.runner[0] == vllm.python == "/opt/py"
    assert vllm.environment == {"PYTHONPATH": "/opt/site"}
    assert plot.read_text().startswith("<svg")
    assert msgspec.json.decode(result.stdout, type=Comparison).settings == plan.offline


def test_an_engine_that_failed_is_an_error_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from parhelion.bench.compare.results import EngineRow

    def measured(plan: Plan, _output: Path | None, _say: object) -> Comparison:
        bench = make_bench(tmp_path, plan.offline)
        bench.recorder.put_engine(EngineRow("tiny", "vllm", error="vllm ended with status 1"))
        return bench.recorder.comparison

    monkeypatch.setattr("parhelion.bench.compare.run.compare", measured)
    result = invoke("--mode", "offline", "--model", "tiny")
    assert result.exit_code == 1
    assert "not all could be measured" in result.output
    assert "vllm, tiny: vllm ended with status 1" in result.output
