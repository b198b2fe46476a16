"""Ranks that Ray places say what one rank says; what ends is named, started again, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from parhelion import LLM, AsyncEngine, EngineConfig, RequestOutput, SamplingParams
from parhelion.config import ServerConfig
from parhelion.engine.ranks.ray_hosts import RayHosts
from parhelion.engine.replicas.replica import RestartPolicy
from parhelion.errors import ConfigError, EngineDeadError
from parhelion.server.app import create_app
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of
from tests.processes import has_ended

LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


class Cluster:
    """One node with room for two ranks, in a process of its own."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.e2e.ray_cluster", "2"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address = self._line()

    @property
    def num_groups(self) -> int:
        """Placement groups that hold something."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return int(self._line())

    @property
    def ranks(self) -> list[psutil.Process]:
        """Processes of ranks other than the first."""
        found = psutil.Process(self._process.pid).children(recursive=True)
        return [each for each in found if "parhelion.engine.ranks.process" in _arguments(each)]

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=90)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # The paths of a cluster's sockets must be short, and pytest's folders are not.
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray") as folder:
        # Only this test may use the cluster.
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster()
        yield started
        started.close()


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def config_of(path: Path, cluster: Cluster, **options: Any) -> EngineConfig:
    merged = {"kv_cache_memory": 8 << 20, "max_num_seqs": 32, "tp": 2, **options}
    return EngineConfig(
        model=str(path),
        dtype="float32",
        threads=1,
        device="cpu",
        executor="ray",
        ray_address=cluster.address,
        **merged,
    )


async def until(condition: Callable[[], bool], seconds: float = 90) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def expected(tiny_path: Path) -> list[Tokens]:
    """What a single rank answers."""
    with LLM(str(tiny_path), dtype="float32", threads=1, kv_cache_memory=8 << 20, device="cpu") as llm:
        return tokens_of(llm.generate(PROMPTS, PARAMS))


async def answers(engine: AsyncEngine) -> list[RequestOutput]:
    async def answer(prompt: Any, params: SamplingParams) -> RequestOutput:
        async for output in engine.generate(prompt, params):
            latest = output
        return latest

    return list(await asyncio.gather(*map(answer, PROMPTS, PARAMS)))


def test_ranks_that_ray_places(tiny_path: Path, cluster: Cluster, expected: list[Tokens]) -> None:
    async def run() -> None:
        policy = RestartPolicy(first_s=0.05, most_s=0.2, most_failed_starts=None)
        engine = await AsyncEngine.from_config(config_of(tiny_path, cluster), restarts=policy)
        transport = httpx.ASGITransport(create_app(engine, ServerConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            assert (await client.get("/health")).json()["status"] == "ok"
            assert tokens_of(await answers(engine)) == expected
            assert cluster.num_groups == 1
            (rank,) = cluster.ranks
            stream = engine.generate("go on", LONG)
            await anext(stream)
            rank.kill()
            name = rf"rank 1 on {os.uname().nodename} \(process {rank.pid}\) was killed by SIGKILL"
            with pytest.raises(EngineDeadError, match=name):
                async for _ in stream:
                    pass
            dead = await client.get("/health")
            assert dead.status_code == 503
            assert dead.json()["replicas"][0]["status"] == "waiting"
            await until(lambda: engine.replicas[0].serves)
            assert tokens_of(await answers(engine)) == expected
            # The engine's own process, which has no time to tell anybody.
            process, (rank,) = psutil.Process(engine.replicas[0].process), cluster.ranks
            (store,) = (each for each in process.children() if "parhelion.distributed.store_server" in _arguments(each))
            process.kill()
            await until(lambda: engine.replicas[0].restarts == 2 and engine.replicas[0].serves)
            assert not rank.is_running()
            assert has_ended(store)
            assert cluster.num_groups == 1
            (rank,) = cluster.ranks
        await engine.shutdown()
        await until(lambda: not rank.is_running() and cluster.num_groups == 0)

    asyncio.run(run())


def test_stages_that_ray_places_in_the_cluster_that_the_environment_names(
    tiny_path: Path, cluster: Cluster, expected: list[Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    config = replace(config_of(tiny_path, cluster, tp=1, pp=2), ray_address=None)
    with LLM(**vars(config)) as llm:
        assert tokens_of(llm.generate(PROMPTS, PARAMS)) == expected
        (rank,) = cluster.ranks
    asyncio.run(until(lambda: not rank.is_running() and cluster.num_groups == 0))


@pytest.mark.parametrize("from_environment", [False, True])
def test_an_address_where_no_cluster_is_is_refused_at_once(
    tiny_path: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, from_environment: bool
) -> None:
    nowhere = "127.0.0.1:1"
    monkeypatch.setenv("RAY_ADDRESS", nowhere if from_environment else cluster.address)
    config = replace(config_of(tiny_path, cluster), ray_address=None if from_environment else nowhere)
    with pytest.raises(ConfigError, match=rf"there is no Ray cluster at {nowhere} .*ray start --head"):
        RayHosts(config)
