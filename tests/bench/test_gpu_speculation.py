"""The benchmark of guesses whose acceptance is imposed, rehearsed on a CPU: beside vLLM, for which a module stands."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from parhelion.bench.compare.runners.vllm_speculation import AlwaysGuesses

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

# What this uses of vLLM 0.26, by the names that it has for it: options, worker extensions, custom proposers, guesses
# that count by chance, and an engine that is stepped.
VLLM = """
import importlib, json, os, pathlib, random, types
import torch
__version__ = "9.9"
HERE = pathlib.Path(__file__).parent


class SamplingParams:
    def __init__(self, **options):
        assert options.pop("temperature") == 0.0 and options.pop("ignore_eos") and not options.pop("detokenize")
        self.max_tokens = options.pop("max_tokens")
        assert not options


def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


class LLM:
    def __init__(self, **options):
        with (HERE / "options.jsonl").open("a") as file:
            file.write(json.dumps(options) + "\\n")
        pathlib.Path(os.environ["VLLM_CACHE_ROOT"]).mkdir()
        guessing = options.get("speculative_config")
        self.worker, proposer = types.SimpleNamespace(), None
        if guessing is not None:
            if guessing["method"] == "eagle3":
                head = json.loads(pathlib.Path(guessing["model"], "config.json").read_text())
                assert (head["num_hidden_layers"], head["hidden_size"]) == (1, 256)
                if FAILS:
                    raise RuntimeError("no such head")
            else:
                config = types.SimpleNamespace(speculative_config=types.SimpleNamespace(**guessing))
                proposer = find(guessing["model"])(config)
            rates = guessing["synthetic_acceptance_rates"]
            assert guessing["rejection_sample_method"] == "synthetic"
            assert len(rates) == guessing["num_speculative_tokens"] and sorted(rates, reverse=True) == rates
            assert all(0 <= rate <= 1 for rate in rates)
            self.worker = type("Worker", (find(options["worker_extension_cls"]),), {})()
            sampler = types.SimpleNamespace(synthetic_conditional_rates=torch.full([len(rates)], 0.123))
            self.worker.model_runner = types.SimpleNamespace(rejection_sampler=sampler)
        self.llm_engine = Engine(self.worker, proposer)

    def collective_rpc(self, method, args):
        return [getattr(self.worker, method)(*args)]


class Engine:
    def __init__(self, worker, proposer):
        self.worker, self.proposer, self.random, self.running = worker, proposer, random.Random(3), {}

    def add_request(self, request_id, prompt, params):
        assert prompt["type"] == "token" and prompt["prompt_token_ids"] and isinstance(request_id, str)
        self.running[request_id] = ([], params.max_tokens)

    def has_unfinished_requests(self):
        return bool(self.running)

    def step(self):
        outputs = []
        for request_id, (tokens, most) in list(self.running.items()):
            right = 0
            if hasattr(self.worker, "model_runner") and tokens:
                rates = self.worker.model_runner.rejection_sampler.synthetic_conditional_rates.tolist()
                guesses = self.proposer.propose([tokens], [0], [[0]])[0] if self.proposer else rates
                assert len(guesses) == len(rates)
                right = next((n for n, rate in enumerate(rates) if self.random.random() >= rate), len(rates))
            tokens += [1] * min(right + 1, most - len(tokens))
            completion = types.SimpleNamespace(token_ids=list(tokens))
            done = len(tokens) == most
            outputs.append(types.SimpleNamespace(request_id=request_id, outputs=[completion], finished=done))
            if done:
                del self.running[request_id]
        return outputs
"""


def rehearse(folder: Path, fails: bool, *sizes: str) -> tuple[dict[str, Any], str]:
    """The result of the whole command, and what it printed."""
    site = folder / "site"
    site.mkdir()
    (site / "vllm.py").write_text(VLLM.replace("FAILS", str(fails)))
    output = folder / "result.json"
    command = [sys.executable, str(BENCHMARKS / "h100_speculation.py"), "--device", "cpu", "--model", "tiny"]
    command += ["--draft", "eagle3", "--rounds", "1", "--input-length", "24", *sizes]
    command += ["--peer-path", str(site), "--peer-timeout", "60"]
    done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text()), done.stdout


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    folder = tmp_path_factory.mktemp("speculation")
    sizes = ("--batches", "2", "--counts", "1,3", "--rates", "0.5,1", "--output-length", "25")
    return (*rehearse(folder, False, *sizes), folder)


def case(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("engine", "batch", "way", "guesses", "imposed"))


def test_both_engines_are_measured_in_the_same_cases(rehearsed: tuple[dict[str, Any], str, Path]) -> None:
    result, printed, _ = rehearsed
    assert [row["failed"] for row in result["rows"] if "failed" in row] == []
    cases = {case(row) for row in result["rows"]}
    assert len(cases) == len(result["rows"])
    fixed = {(2, way, count, rate) for way in ("given", "head") for count in (1, 3) for rate in (0.5, 1.0)}
    plain = {(2, "off", 0, None)}
    autos = {(2, f"{way}, auto", 3, rate) for way in ("given", "head") for rate in (0.0, 0.5, 1.0)}
    assert {each[1:] for each in cases if each[0] == "vllm"} == fixed | plain
    assert {each[1:] for each in cases if each[0] == "parhelion"} == fixed | plain | autos
    assert "vllm, batch   2 head         3 guesses, imposed 1.0:" in printed


def test_as_many_guesses_count_as_is_imposed(rehearsed: tuple[dict[str, Any], str, Path]) -> None:
    for row in rehearsed[0]["rows"]:
        assert row["tpot_ms"] > 0
        assert row["tpot_ms_range"][0] <= row["tpot_ms"] <= row["tpot_ms_range"][1]
        if row["imposed"] == 1.0 and "auto" not in row["way"]:
            # The last guesses of a text may find no room.
            assert 0.9 * (1 + row["guesses"]) < row["mean_accepted_length"] <= 1 + row["guesses"]
        if row["imposed"] == 0.5 and "auto" not in row["way"]:
            expected = sum(0.5**place for place in range(row["guesses"] + 1))
            assert abs(row["mean_accepted_length"] - expected) < 0.45
            rate = (row["mean_accepted_length"] - 1) / row["guesses"]
            assert row["acceptance_rate"] == pytest.approx(rate, abs=0.1)
        if row["imposed"] == 0.0:
            assert not row["acceptance_rate"]


def test_vllm_is_told_where_guesses_come_from(rehearsed: tuple[dict[str, Any], str, Path]) -> None:
    result, _, folder = rehearsed
    lines = (folder / "site" / "options.jsonl").read_text().splitlines()
    told = sorted((json.loads(line) for line in lines), key=lambda each: json.dumps(each.get("speculative_config")))
    assert len({each["kv_cache_memory_bytes"] for each in told}) == 1
    assert {each["max_num_seqs"] for each in told} == {2}
    configs = [each.get("speculative_config") for each in told]
    methods = [None if each is None else (each["method"], each["num_speculative_tokens"]) for each in configs]
    assert sorted(filter(None, methods)) == [("custom_class", 1), ("custom_class", 3), ("eagle3", 1), ("eagle3", 3)]
    assert methods.count(None) == 1
    assert {each.get("worker_extension_cls") for each in told} == {None, "vllm_speculation.ImposedAcceptance"}
    assert any("custom proposer" in note for note in result["notes"])
    # Its dummy weights are asked for, and this one has none.
    assert "did not call the plugin" in result["notes"][-1]
    [versions] = {json.dumps(row["versions"]) for row in result["rows"] if "versions" in row}
    assert json.loads(versions)["vllm"] == "9.9"


def test_the_table_has_a_line_for_each_engine_and_way(
    rehearsed: tuple[dict[str, Any], str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_speculation_table import gpu_speculation_table

    text = gpu_speculation_table(json.dumps(rehearsed[0]).encode())
    lines = text.splitlines()
    names = [line.split(" | ")[1] for line in lines if line.startswith("| 2 |")]
    ours = ["always 1", "always 3", "`auto`, up to 3"]
    theirs = [f"vLLM: always {count}" for count in (1, 3)]
    assert names == [
        *ours,
        *(f"{name}, by a head" for name in ours),
        "none",
        *theirs,
        *(f"{name}, by a head" for name in theirs),
        "vLLM: none",
    ]
    assert {line.count("|") for line in lines if line.startswith("|")} == {6}
    assert "24 tokens in, 25 out" in text
    assert "vllm 9.9" in text


def test_what_vllm_cannot_do_is_said_and_the_rest_is_measured(tmp_path: Path) -> None:
    sizes = ("--batches", "1,2", "--counts", "1", "--rates", "1", "--output-length", "8")
    result, printed = rehearse(tmp_path, True, *sizes)
    failed = {case(row): row["failed"] for row in result["rows"] if "failed" in row}
    assert {each[:3] for each in failed} == {("vllm", 1, "head"), ("vllm", 2, "head")}
    assert all("no such head" in said for said in failed.values())
    assert "no such head" in printed
    assert len([row for row in result["rows"] if row["engine"] == "vllm" and "failed" not in row]) == 4


@pytest.mark.parametrize("sampled", [[[5], [], [6, 7]]])
def test_a_request_that_has_no_token_yet_gets_no_guesses(sampled: list[list[int]]) -> None:
    config: Any = ModuleType("config")
    config.speculative_config = ModuleType("speculative_config")
    config.speculative_config.num_speculative_tokens = 2
    guesses = AlwaysGuesses(config).propose(sampled, [1, 2, 3], None, slot_mappings=None)
    assert [len(each) for each in guesses] == [2, 0, 2]
    assert all(token >= 0 for each in guesses for token in each)
