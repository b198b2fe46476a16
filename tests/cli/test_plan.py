"""The planner's command: what it prints, for people and programs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from parhelion.bench.compare.checkpoint import FP8_PER_TOKEN_CONFIG, TINY, write_config
from parhelion.cli.main import build_app
from tests.models.eagle3_heads import ORIGINAL_JSON, write_head

runner = CliRunner()
FOR_A_HEAD = ("--gpus", "4", "--draft-model")
DRAFTED = (*FOR_A_HEAD, "qwen3-0.6b")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")


def planned(*arguments: str) -> dict[str, Any]:
    result = runner.invoke(build_app(), ["plan", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*arguments: str) -> str:
    result = runner.invoke(build_app(), ["plan", *arguments])
    assert result.exit_code == 1, result.output
    return result.output


def test_text_has_layouts_memory_reasons_and_assumptions() -> None:
    result = runner.invoke(build_app(), ["plan", "qwen3-8b", "--gpus", "8", "--quantization", "fp8_per_token"])
    assert result.exit_code == 0
    for part in (
        "8 x 1 x 1",
        "measured",
        "scaled",
        "memory of the fullest rank",
        "what fits a rank",
        "best with another tp",
        "1 x 2 x 4",
        "kernels as pack h100 has them",
        "nothing of it was measured",
        "--tp, --pp and --dp so on the GPUs of one machine",
    ):
        assert part in result.output


def test_json_has_every_layout_with_shares_that_add_up() -> None:
    report = planned("qwen3-8b", "--gpus", "8", "--top", "100")
    sizes = {each["tp"] * each["pp"] * each["dp"] for each in report["layouts"]}
    assert sizes == {8}
    for each in report["layouts"]:
        for time in (each["tpot"], each["prefill"]):
            assert sum(time[name] for name in ("measured", "scaled", "floor", "links", "host")) == pytest.approx(1.0)
    assert report["workload"]["objective"] == "latency"
    assert report["assumptions"]


def test_thousands_of_gpus_are_planned() -> None:
    report = planned("qwen3-32b", "--gpus", "4096", "--objective", "throughput", "--quantization", "fp8_per_token")
    assert report["num_gpus"] == 4096
    assert report["layouts"][0]["tokens_per_s"] > 0


@pytest.mark.parametrize("device", ["b200", "a100", "l40s", "mi300x", "mi355x"])
def test_devices_without_a_pack_have_floors(device: str) -> None:
    report = planned("qwen3-8b", "--gpus", "2", "--device", device)
    assert report["layouts"][0]["tpot"]["measured"] == report["layouts"][0]["tpot"]["scaled"] == 0.0
    assert any("no pack" in each for each in report["assumptions"])


def test_another_devices_pack_is_scaled() -> None:
    report = planned("qwen3-8b", "--device", "h200", "--pack", "h100", "--quantization", "fp8_per_token")
    tpot = report["layouts"][0]["tpot"]
    # Attention and ``step_inputs`` of today were not measured there.
    assert (tpot["measured"], tpot["scaled"]) == (0.0, pytest.approx(1.0, abs=0.04))
    here = planned("qwen3-8b", "--device", "h100", "--quantization", "fp8_per_token")
    assert tpot["ms"] < here["layouts"][0]["tpot"]["ms"]


def test_without_a_pack_steps_take_longer() -> None:
    tuned, untuned = (
        planned("qwen3-8b", "--quantization", "fp8_per_token", *more)["layouts"][0]["tpot"]["ms"]
        for more in ((), ("--untuned",))
    )
    assert untuned > tuned


def test_a_folder_with_a_config_will_do(tmp_path: Path) -> None:
    folder = write_config(TINY, tmp_path / "tiny", FP8_PER_TOKEN_CONFIG)
    report = planned(str(folder), "--gpus", "2")
    assert report["model"] == "tiny"
    assert report["quantization"].startswith("fp8")
    assert {each["quantization"] for each in report["fits"]} == {report["quantization"]}


def test_a_draft_model_and_a_head_take_memory(tmp_path: Path) -> None:
    sizes = {"vocab_size": 151936, "target_hidden_size": 4096, "draft_vocab_size": 32000}
    head = write_head(tmp_path / "head", ORIGINAL_JSON | sizes)
    plain, draft, with_head = (
        planned("qwen3-8b", *more) for more in (("--gpus", "4"), DRAFTED, (*FOR_A_HEAD, str(head)))
    )
    first = plain["layouts"][0]

    def sizes_of(layout: Any) -> tuple[int, int, int]:
        return layout["tp"], layout["pp"], layout["dp"]

    for report in (draft, with_head):
        assert {each["pp"] for each in report["layouts"]} == {each["pp"] for each in plain["layouts"]}
        assert any("what guesses gain is not planned" in each for each in report["assumptions"])
        (same,) = (each for each in report["layouts"] if sizes_of(each) == sizes_of(first))
        assert same["memory"]["weights"] > first["memory"]["weights"]
        assert same["memory"]["kv_tokens"] < first["memory"]["kv_tokens"]
        assert same["tpot"] == first["tpot"]
    other = write_head(tmp_path / "other", ORIGINAL_JSON | sizes | {"target_hidden_size": 2048})
    assert "is a head for another model than qwen3-8b" in refused("qwen3-8b", *FOR_A_HEAD, str(other))


def test_a_listed_head_is_one_for_its_model() -> None:
    assert planned("qwen3-8b", *FOR_A_HEAD, "qwen3-8b-eagle3")["layouts"]
    assert "is a head for another model than qwen3-1.7b" in refused("qwen3-1.7b", *FOR_A_HEAD, "qwen3-8b-eagle3")


def test_a_quantized_head_takes_less_memory_and_less_time() -> None:
    plain, head = (
        planned("qwen3-8b", "--quantization", "fp8_per_token", *more)
        for more in ((), ("--lm-head-quantization", "fp8"))
    )
    said = "the output head is in fp8_per_token whatever the layers are in"
    assert (said in plain["assumptions"], said in head["assumptions"]) == (False, True)
    plain, head = plain["layouts"][0], head["layouts"][0]
    assert plain["memory"]["weights"] - head["memory"]["weights"] == 151936 * (4096 - 4)
    assert head["tpot"]["ms"] < plain["tpot"]["ms"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("qwen3-8b", "--objective", "speed"), "latency, throughput"),
        (("qwen3-8b", "--device", "h1000"), "there are h100"),
        (("qwen3-8b", "--network", "0"), "above 0"),
        (("qwen3-8b", "--gpus", "6", "--tp", "6"), "tp may be 1, 2, 4, 8, 16, 32"),
        (("qwen3-8b", "--batch", "0"), "batch is 0"),
        (("qwen3-8b", "--pack", "off", "--untuned"), "name one with --pack"),
        (("no-such-model",), "not listed"),
        (("qwen3-8b", "--quantization", "fp4"), "there are unquantized"),
        (("qwen3-32b", "--device", "l40s"), "GPUs would do"),
        (("qwen3-8b", "--draft-model", "smollm2-135m"), "a draft model must have the same vocabulary"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_way_out(arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(*arguments)
