"""A process that runs and does not proceed, though it gives signs of life: the engine ends, or is started again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest

from parhelion import AsyncEngine, EngineConfig, SamplingParams
from parhelion.engine.connection import ProcessConnection
from parhelion.engine.replicas.replica import RestartPolicy
from parhelion.errors import EngineDeadError
from tests.processes import wait_for_end

HANGING, HANG = Path(__file__).parents[2] / "benchmarks" / "hanging", signal.SIGUSR2
LONG = SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)
SHORT = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Processes hang when they are told to, and put their files here."""
    searched = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HANGING), *filter(None, searched)]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def config_of(path: Path, **options: Any) -> EngineConfig:
    limits = {"kv_cache_memory": 8 << 20, "max_num_seqs": 8, "step_timeout_s": 2.0}
    return EngineConfig(model=str(path), dtype="float32", threads=1, device="cpu", **limits, **options)


def ends(coroutine: Coroutine[Any, Any, None], seconds: float = 60) -> None:
    asyncio.run(asyncio.wait_for(coroutine, seconds))


async def error_of(stream: Any) -> str:
    with pytest.raises(EngineDeadError) as raised:
        async for _ in stream:
            pass
    return str(raised.value)


def children(process: psutil.Process, module: str) -> list[psutil.Process]:
    return [each for each in process.children(recursive=True) if module in each.cmdline()]


@pytest.mark.parametrize(
    ("sizes", "module"),
    [({"tp": 2}, "parhelion.engine.process"), ({"pp": 2}, "parhelion.engine.ranks.process")],
    ids=["rank 0", "stage"],
)
def test_an_engine_with_a_process_that_hangs_ends_with_all_others_and_leaves_nothing(
    patient_path: Path, files: Path, capfd: pytest.CaptureFixture[str], sizes: dict[str, int], module: str
) -> None:
    async def hang() -> None:
        engine = await AsyncEngine.from_config(config_of(patient_path, **sizes))
        try:
            assert isinstance(engine._connection, ProcessConnection)
            process = psutil.Process(engine._connection.pid)
            processes = [process, *process.children(recursive=True)]
            (victim, *_) = children(psutil.Process(), module)
            stream = engine.generate("Once upon a time", LONG)
            await anext(stream)
            victim.send_signal(HANG)
            said = await error_of(stream)
            assert "no step has ended for 2 s: " in said
            assert "runs and does not proceed" in said
            assert all(f"(process {each.pid})" in said for each in processes)
            await asyncio.to_thread(wait_for_end, processes, 30)
        finally:
            await engine.shutdown()
        logged = capfd.readouterr().err
        assert "sitecustomize.py" in logged, "where the threads are"
        if victim != process:
            assert f"(process {victim.pid}) did not end by itself" in logged

    ends(hang())
    assert list(files.iterdir()) == []


def test_a_replica_that_hangs_is_started_again_and_what_was_not_seen_is_answered(
    patient_path: Path, files: Path
) -> None:
    async def hang() -> None:
        restarts = RestartPolicy(first_s=0.05, most_s=0.2)
        engine = await AsyncEngine.from_config(config_of(patient_path, dp=2, tp=2), restarts=restarts)
        try:
            await until_all_serve(engine)
            stream = engine.generate("go on", LONG)
            await anext(stream)
            (number,) = [each.state.replica for each in (await engine.stats()).replicas if each.stats.num_running]
            process = engine.replicas[number].process or 0
            (rank,) = children(psutil.Process(process), "parhelion.engine.ranks.process")
            rank.send_signal(HANG)
            unseen = [asyncio.create_task(last(engine.generate("x", SHORT))) for _ in range(4)]
            said = await error_of(stream)
            assert f"replica {number}: no step has ended for 2 s: one of these runs and does not proceed: " in said
            assert f"(process {rank.pid})" in said
            assert len({(await each).outputs[0].text for each in unseen}) == 1
            await until_all_serve(engine)
            assert [each.restarts for each in engine.replicas] == [int(index == number) for index in range(2)]
            assert not psutil.pid_exists(process)
            assert not psutil.pid_exists(rank.pid)
        finally:
            await engine.shutdown()

    ends(hang(), 120)
    assert list(files.iterdir()) == []


async def until_all_serve(engine: AsyncEngine) -> None:
    while not engine.replicas or not all(each.serves for each in engine.replicas):
        await asyncio.sleep(0.05)


async def last(stream: Any) -> Any:
    async for output in stream:
        latest = output
    return latest
