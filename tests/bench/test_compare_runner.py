"""The real runner: what it says and what it keeps off its stdout, vLLM's side with a module that stands for vLLM."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from parhelion.bench.compare.checkpoint import write_config
from parhelion.bench.compare.driver import Launch, Runner, RunnerError
from parhelion.bench.compare.engines import Engine, peer
from parhelion.bench.compare.offline import compare_offline, load_request
from parhelion.bench.compare.protocol import EngineFacts, Generate, Generated, Info, Loaded
from parhelion.bench.compare.run import Plan, compare
from parhelion.bench.compare.settings import OfflineSettings
from parhelion.errors import ConfigError
from tests.bench.compare_bench import SMALL, fake, make_bench

SETTINGS = OfflineSettings(
    batches=(2,), input_length=8, output_length=4, rounds=1, max_num_batched_tokens=64, timeout_s=60, device="cpu"
)

# Stands for vLLM: notes how it was called, and prints to stdout from itself and from a process of its own.
VLLM = """
import json, pathlib, subprocess, sys
__version__ = "9.9"
HERE = pathlib.Path(__file__).parent


class SamplingParams:
    def __init__(self, **options):
        self.options = options


class Completion:
    def __init__(self, count):
        self.token_ids = [1] * count


class Output:
    def __init__(self, count):
        self.outputs = [Completion(count)]


class LLM:
    def __init__(self, **options):
        print("INFO: loading")
        subprocess.run([sys.executable, "-c", "print('INFO: a worker')"])
        (HERE / "options.json").write_text(json.dumps(options))
        (HERE / "modules.json").write_text(json.dumps(sorted(sys.modules)))

    def generate(self, prompts, params, use_tqdm):
        (HERE / "calls.jsonl").open("a").write(json.dumps([prompts, params.options, use_tqdm]) + "\\n")
        return [Output(params.options["max_tokens"]) for _ in prompts]
"""


@pytest.fixture
def vllm(tmp_path: Path) -> Engine:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "vllm.py").write_text(VLLM)
    # For which a Python of its own is started: a forked one has imported what this test looks for.
    (folder / "sitecustomize.py").touch()
    return peer("vllm", sys.executable, str(folder))


def test_vllm_is_asked_for_ids_alone_with_the_same_limits_and_without_parhelion(vllm: Engine, tmp_path: Path) -> None:
    bench = make_bench(tmp_path, SETTINGS)
    compare_offline([fake("parhelion"), vllm], bench)
    (row,) = [row for row in bench.recorder.comparison.engines if row.engine == "vllm"]
    assert row.error is None
    assert row.facts.versions["vllm"] == "9.9"
    options = json.loads((tmp_path / "site" / "options.json").read_text())
    told = load_request(bench)
    assert options == {
        "model": told.model,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "gpu_memory_utilization": told.memory_share,
        "kv_cache_memory_bytes": told.kv_cache_memory,
        "max_model_len": 16,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 64,
        "seed": 0,
    }
    prompts, params, use_tqdm = json.loads((tmp_path / "site" / "calls.jsonl").read_text().splitlines()[-1])
    assert params == {"temperature": 0.0, "max_tokens": 4, "ignore_eos": True, "detokenize": False}
    assert [len(prompt["prompt_token_ids"]) for prompt in prompts] == [8, 8]
    assert use_tqdm is False
    modules = json.loads((tmp_path / "site" / "modules.json").read_text())
    assert not [name for name in modules if name.split(".")[0] == "parhelion"]
    log = (tmp_path / "logs" / "tiny-vllm.log").read_text()
    assert "INFO: loading" in log
    assert "INFO: a worker" in log


def test_an_engine_that_is_not_installed_is_an_error_with_its_log(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, SETTINGS)
    compare_offline([fake("parhelion"), peer("vllm", sys.executable, str(tmp_path))], bench)
    error = bench.recorder.comparison.engines[1].error
    assert "vllm was asked to load and said ModuleNotFoundError: No module named 'vllm'" in str(error)
    assert "--peer-python and --peer-path choose another place" in str(error)
    assert "tiny-vllm.log" in str(error)


def test_a_request_before_loading_is_refused_and_the_runner_goes_on(vllm: Engine, tmp_path: Path) -> None:
    runner = Runner(Launch(vllm.name, vllm.runner, tmp_path / "log", vllm.environment))
    try:
        with pytest.raises(RunnerError, match="vllm was asked to generate and said"):
            runner.ask(Generate(1, 1, 1, 0), Generated, 30)
        runner.ask(load_request(make_bench(tmp_path, SETTINGS)), Loaded, 30)
        assert runner.ask(Info(), EngineFacts, 30).kv_cache_bytes
        same = [runner.ask(Generate(2, 8, length, 5), Generated, 30) for length in (1, 4)]
        other = runner.ask(Generate(2, 8, 4, 6), Generated, 30)
    finally:
        runner.close()
    assert [answer.tokens for answer in same] == [2, 8]
    assert same[0].prompt_checksum == same[1].prompt_checksum != other.prompt_checksum


def test_parhelion_is_its_own_peer(tmp_path: Path) -> None:
    settings = replace(SETTINGS, output_length=48, rounds=2, timeout_s=120)
    where = str(write_config(SMALL, tmp_path / "small", None))
    result = compare(Plan((peer("parhelion"),), (where,), "offline", settings), tmp_path / "out.json", print)
    assert [row.error for row in result.engines] == [None, None]
    (row,) = result.rows
    assert row.refused == {}
    assert {sample.whole_tokens for rounds in row.samples.values() for sample in rounds} == {96}
    # The machine may be busy with other tests, so what the ratio is says nothing; it is tested with planted times.
    assert 0 < row.tpot_ratio["parhelion-peer"].low <= row.tpot_ratio["parhelion-peer"].high
    first, second = (row.tpot_ms[name] for name in ("parhelion", "parhelion-peer"))
    assert min(first, second) > 0
    assert row.floor_ms is not None
    assert all(0 < share < 1 for share in row.of_floor.values())
    facts = result.engines[0].facts
    assert any(kernel.startswith("rms_norm=") for kernel in facts.kernels)
    assert facts.kv_cache_bytes
    assert {"parhelion", "torch"} & set(result.versions["parhelion"])
    assert result.cold_start_s["parhelion"] > result.engines[0].load_s > 0
    assert result.peak_gib == {}
    assert (tmp_path / "out-logs" / "small-parhelion.log").exists()


@pytest.mark.parametrize("name", ["sglang", "tensorrt-llm"])
def test_peers_without_a_runner_are_pointed_at_their_server(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no offline runner here: start its server and .* --url"):
        peer(name)


def test_an_unknown_peer_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="'llama' is no peer; there are vllm and parhelion"):
        peer("llama")
