"""Several ranks say what one says, and when one of them ends the engine ends with an error and leaves nobody behind."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from parhelion import LLM, AsyncEngine, EngineConfig, RequestOutput, SamplingParams
from parhelion.distributed.rendezvous import join, leave
from parhelion.engine.connection import ProcessConnection
from parhelion.engine.kv_storage import KVCacheSize
from parhelion.engine.ranks import start
from parhelion.engine.ranks.processes import RankProcesses
from parhelion.errors import CheckpointError, ConfigError, EngineDeadError
from parhelion.ops.launching import BUCKETS
from parhelion.types import TokenLogprobs
from tests.checkpoints.quantized import FORMATS
from tests.e2e.conftest import open_llm
from tests.e2e.mixed_requests import PARAMS, PREFIX, PROMPTS, tokens_of
from tests.e2e.tiny_models import TinyModel, write_byte_tokenizer
from tests.processes import have_ended, wait_for_end

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)
"""So long that whoever is killed meanwhile has not ended before."""

ODD_VOCABULARY = TinyModel("qwen3-odd-vocabulary", "Qwen3", {"vocab_size": 511, "tie_word_embeddings": True})
ONE_KV_HEAD = TinyModel("qwen2-one-kv-head", "Qwen2", {"num_key_value_heads": 1})
BY_BLOCK = TinyModel(
    "llama-by-block",
    "Llama",
    {"hidden_size": 128, "num_attention_heads": 4, "head_dim": 64, "num_key_value_heads": 4, "intermediate_size": 256},
)
BIASED = TinyModel("llama-biased", "Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32})


def written(model: TinyModel, folder: Path) -> Path:
    model.write(folder)
    write_byte_tokenizer(folder)
    return folder


def test_every_setting_the_prefix_cache_and_a_vocabulary_that_needs_padding(
    make_llm: Callable[..., LLM], tmp_path: Path
) -> None:
    folder = written(ODD_VOCABULARY, tmp_path)
    prompts = [*PROMPTS, "The end"]
    params = [*PARAMS, SamplingParams(temperature=0, max_tokens=8, logprobs=3, prompt_logprobs=2)]
    one, two = (make_llm(folder, block_size=8, tp=tp) for tp in (1, 2))
    assert two.info.tp == 2
    for llm in (one, two):
        assert list(llm.info.block_kernels) == list(BUCKETS)
        calls = llm.info.block_kernels[1]
        assert len(calls) == llm.info.launches_per_layer
        assert set(calls) <= set(llm.info.kernels)
    assert sum(call.startswith("all_reduce") for call in two.info.block_kernels[1]) == 2
    alone = one.generate(prompts, params)
    for _ in range(2):
        together = two.generate(prompts, params)
        assert tokens_of(together) == tokens_of(alone)
    assert together[3].num_cached_tokens >= len(PREFIX) // 8 * 8
    for ours, theirs in zip(logprobs_of(together[-1]), logprobs_of(alone[-1]), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(ours[token].logprob == pytest.approx(theirs[token].logprob, abs=1e-4) for token in ours)


def logprobs_of(output: RequestOutput) -> list[TokenLogprobs]:
    """Those of the prompt but its first token, and those of the answer."""
    assert output.prompt_logprobs is not None
    assert output.outputs[0].logprobs is not None
    return [each for each in output.prompt_logprobs if each is not None] + output.outputs[0].logprobs


def test_preemption_chunks_and_guesses_change_nothing_where_ranks_share_a_kv_head(
    make_llm: Callable[..., LLM], tmp_path: Path
) -> None:
    folder = written(ONE_KV_HEAD, tmp_path)
    alone = tokens_of(make_llm(folder, overlap=False).generate(PROMPTS, PARAMS))
    # Each rank holds the only KV head.
    block_bytes = 2 * 3 * 1 * 16 * 4 * 4
    llm = make_llm(
        folder,
        tp=2,
        block_size=4,
        kv_cache_memory=80 * block_bytes,
        enable_prefix_caching=False,
        speculate="ngram",
        max_num_batched_tokens=16,
        max_num_seqs=6,
    )
    assert llm.info.num_blocks == 80
    assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    stats = llm.stats()
    assert stats.preemptions_total > 0
    assert stats.acceptance_rate


def test_scales_by_block_are_cut_between_blocks_and_change_nothing(
    make_llm: Callable[..., LLM], tmp_path: Path
) -> None:
    folder = written(BY_BLOCK, tmp_path)
    stored = FORMATS["fp8-block"]
    tensors = load_file(folder / "model.safetensors")
    for name in [each for each in tensors if each.endswith("_proj.weight")]:
        tensors[name], scales = stored.store(tensors[name])
        tensors[f"{name.removesuffix('weight')}{stored.scale_name}"] = scales
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": stored.quantization_config}
    (folder / "config.json").write_text(json.dumps(config))
    one, two = (tokens_of(make_llm(folder, tp=tp).generate(PROMPTS, GREEDY)) for tp in (1, 2))
    assert two == one
    with pytest.raises(ConfigError, match=r"in units of 128 .*tp may be 1, 2$"):
        make_llm(folder, tp=4)


def test_ranks_that_quantize_by_token_are_no_further_off_than_quantizing_is(
    make_llm: Callable[..., LLM], tmp_path: Path
) -> None:
    """Codes of weights are the same; but each rank scales its part of a token, where one scales all of it."""
    folder = written(BIASED, tmp_path)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)

    def prompt_logprobs(**options: object) -> torch.Tensor:
        (output,) = make_llm(folder, **options).generate([PROMPTS[5]], params)
        found = [next(iter(each.values())).logprob for each in output.prompt_logprobs or [] if each is not None]
        return torch.tensor(found)

    exact = prompt_logprobs()
    one, two = (prompt_logprobs(tp=tp, quantization="int8") for tp in (1, 2))
    assert 0 < (two - one).abs().mean() < (one - exact).abs().mean()


def config_of(path: Path) -> EngineConfig:
    return EngineConfig(
        model=str(path), dtype="float32", threads=1, kv_cache_memory=8 << 20, max_num_seqs=8, tp=2, device="cpu"
    )


def test_a_rank_killed_in_a_step_ends_the_engine_with_an_error_that_names_it(patient_path: Path) -> None:
    async def run() -> None:
        engine = await AsyncEngine.from_config(config_of(patient_path))
        assert isinstance(engine._connection, ProcessConnection)
        process = psutil.Process(engine._connection.pid)
        (rank,) = ranks_of(process)
        stream = engine.generate("Once upon a time", LONG)
        await anext(stream)
        rank.kill()
        with pytest.raises(EngineDeadError, match=name_of(rank)):
            async for _ in stream:
                pass
        await asyncio.to_thread(wait_for_end, [process, rank], 30)
        await engine.shutdown()

    asyncio.run(run())


def test_a_rank_killed_while_idle_is_noticed_before_the_next_request(tiny_path: Path) -> None:
    async def run() -> None:
        engine = await AsyncEngine.from_config(config_of(tiny_path), in_process=True)
        (rank,) = ranks_of(psutil.Process())
        rank.kill()
        deadline = time.monotonic() + 30
        while not engine.is_dead and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        with pytest.raises(EngineDeadError, match=name_of(rank)):
            await anext(engine.generate("again", LONG))
        await engine.shutdown()

    asyncio.run(run())


def test_a_rank_that_is_stopped_in_a_step_is_ended_and_named(tiny_path: Path) -> None:
    async def run() -> None:
        engine = await AsyncEngine.from_config(replace(config_of(tiny_path), heartbeat_timeout_s=3), in_process=True)
        (rank,) = ranks_of(psutil.Process())
        stream = engine.generate("Once upon a time", LONG)
        await anext(stream)
        stopped = time.monotonic()
        rank.suspend()
        said = rf"rank 1 on {os.uname().nodename} \(process {rank.pid}\) is cut off or hangs: .* for 3 s"
        with pytest.raises(EngineDeadError, match=said):
            async for _ in stream:
                pass
        assert time.monotonic() - stopped < 15
        await asyncio.to_thread(wait_for_end, [rank], 8)
        await engine.shutdown()

    asyncio.run(run())


def ranks_of(process: psutil.Process) -> list[psutil.Process]:
    """The ranks that a process has started; other tests may have left it other children."""
    return [child for child in process.children() if "parhelion.engine.ranks.process" in child.cmdline()]


def name_of(rank: psutil.Process) -> str:
    return rf"rank 1 on {os.uname().nodename} \(process {rank.pid}\) was killed by SIGKILL"


def test_ranks_end_with_the_engine(tiny_path: Path) -> None:
    async def run() -> None:
        engine = await AsyncEngine.from_config(config_of(tiny_path))
        assert isinstance(engine._connection, ProcessConnection)
        process = psutil.Process(engine._connection.pid)
        ranks = ranks_of(process)
        assert ranks
        process.kill()
        await asyncio.to_thread(wait_for_end, [process, *ranks], 30)
        await engine.shutdown()

    asyncio.run(run())


def test_a_rank_that_cannot_start_says_why(tiny_path: Path) -> None:
    ranks = RankProcesses(config_of(tiny_path), tiny_path / "missing")
    processes = [psutil.Process(pid) for pid in ranks.pids.values()]
    try:
        ranks.wait_for_all()
        join(ranks.join(), 0, 2, torch.device("cpu"))
        with pytest.raises(CheckpointError, match=r"rank 1 on .* failed: there is no file or folder .*missing"):
            ranks.smallest(KVCacheSize(8, 64, 8))
    finally:
        ranks.close()
        leave()
    assert have_ended(processes)


def test_a_rank_that_ends_before_it_joins_is_not_waited_for(
    tiny_path: Path, make_llm: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_instead(self: RankProcesses) -> dist.Store:
        psutil.Process(self.pids[1]).kill()
        return dist.HashStore()

    monkeypatch.setattr(RankProcesses, "join", kill_instead)
    with pytest.raises(EngineDeadError, match=r"rank 1 on .* was killed by SIGKILL"):
        make_llm(tp=2)
    monkeypatch.undo()


def test_a_rank_that_says_nothing_is_given_up_and_ended(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "RANK_COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    ranks = RankProcesses(config_of(tiny_path), tiny_path, hello_timeout_s=0.01)
    processes = [psutil.Process(pid) for pid in ranks.pids.values()]
    with pytest.raises(EngineDeadError, match=r"rank 1 on .* said nothing for 0.01 s"):
        ranks.wait_for_all()
    ranks.close()
    assert have_ended(processes)


def test_ranks_of_one_host_meet_in_a_file_that_nobody_else_can_reach(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[int, Path]] = []
    join = RankProcesses.join

    def joined(self: RankProcesses) -> dist.Store:
        assert self._port.folder is not None
        folder = Path(self._port.folder)
        found.append((folder.stat().st_mode & 0o777, folder))
        store = join(self)
        assert isinstance(store, dist.FileStore)
        return store

    monkeypatch.setattr(RankProcesses, "join", joined)
    with open_llm(tiny_path, tp=2):
        sockets = [each for each in psutil.Process().net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        assert {each.laddr.ip for each in sockets} <= {"127.0.0.1"}, "gloo's"
    ((mode, folder),) = found
    assert mode == 0o700
    assert not folder.exists()
