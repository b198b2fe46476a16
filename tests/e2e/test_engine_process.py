"""The engine's process: how it starts, fails, dies, and what its requests learn of that."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from parhelion import AsyncEngine, EngineConfig, SamplingParams
from parhelion.engine import async_engine
from parhelion.engine.connection import ProcessConnection
from parhelion.errors import CheckpointError, EngineDeadError, InvalidRequestError, OutOfMemoryError, QueueFullError
from tests.processes import wait_for_end

LONG = SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)


def config_of(path: Path, **options: int) -> EngineConfig:
    return EngineConfig(
        model=str(path), dtype="float32", threads=1, **{"kv_cache_memory": 8 << 20, "max_num_seqs": 8, **options}
    )


async def wait_until_idle(engine: AsyncEngine) -> None:
    for _ in range(600):
        stats = await engine.stats()
        if (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0):
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"the engine is not idle: {stats}")


def test_what_renders_a_conversation_is_imported_before_the_first_one(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported: list[str] = []
    monkeypatch.setattr(async_engine, "import_renderer", lambda: imported.append(threading.current_thread().name))

    async def run() -> None:
        engine = await AsyncEngine.from_config(config_of(tiny_path), in_process=True)
        assert engine.tokenizer.has_chat_template
        await engine.shutdown()

    asyncio.run(run())
    (thread,) = imported
    assert thread != threading.current_thread().name


def test_abort_and_closed_iterators_free_their_blocks(tiny_path: Path) -> None:
    async def run() -> None:
        engine = await AsyncEngine.from_config(config_of(tiny_path))

        async def read_two(request_id: str) -> None:
            stream = engine.generate("Once upon a time", LONG, request_id=request_id)
            await anext(stream)
            await anext(stream)
            await stream.aclose()

        async def read_all(request_id: str) -> str | None:
            async for partial in engine.generate("Once upon a time", LONG, request_id=request_id):
                last = partial
            return last.outputs[0].finish_reason

        try:
            readers = [asyncio.create_task(read_all(f"whole-{i}")) for i in range(3)]
            await asyncio.gather(*(read_two(f"cut-{i}") for i in range(4)))
            await engine.abort("whole-0")
            await engine.abort("unknown")
            assert await readers[0] == "abort"
            assert [await reader for reader in readers[1:]] == ["length", "length"]
            await wait_until_idle(engine)
        finally:
            await engine.shutdown()

    asyncio.run(run())


def test_a_full_queue_refuses_and_harms_nobody(tiny_path: Path) -> None:
    async def run() -> None:
        engine = await AsyncEngine.from_config(config_of(tiny_path, max_num_seqs=1, max_queue_len=2))

        async def finish(index: int) -> str | None:
            async for partial in engine.generate("abc", LONG, request_id=f"r{index}"):
                last = partial
            return last.outputs[0].finish_reason

        try:
            results = await asyncio.gather(*(finish(i) for i in range(12)), return_exceptions=True)
            assert "length" in results
            refused = [result for result in results if isinstance(result, Exception)]
            assert refused
            assert all(isinstance(error, QueueFullError) for error in refused)
            assert len(refused) + results.count("length") == 12
            await wait_until_idle(engine)
        finally:
            await engine.shutdown()

    asyncio.run(run())


def test_a_killed_engine_fails_its_requests_and_refuses_new_ones(patient_path: Path) -> None:
    async def run() -> None:
        engine = await AsyncEngine.from_config(config_of(patient_path))
        connection = engine._connection
        assert isinstance(connection, ProcessConnection)
        stream = engine.generate("Once upon a time", replace(LONG, max_tokens=4000))
        await anext(stream)
        os.kill(connection.pid, signal.SIGKILL)
        with pytest.raises(EngineDeadError, match="send it again"):
            async for _ in stream:
                pass
        assert engine.is_dead
        with pytest.raises(EngineDeadError):
            await anext(engine.generate("again", LONG))
        with pytest.raises(EngineDeadError):
            await engine.stats()
        await engine.shutdown()

    asyncio.run(run())


def test_start_errors_keep_their_class_across_the_process(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny_path / "config.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text((tiny_path / name).read_text())
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00truncate")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        asyncio.run(AsyncEngine.from_config(config_of(tmp_path)))
    with pytest.raises(OutOfMemoryError, match="kv_cache_memory"):
        asyncio.run(AsyncEngine.from_config(config_of(tiny_path, kv_cache_memory=1 << 50)))


def test_a_request_id_can_run_only_once_at_a_time(tiny_path: Path) -> None:
    async def run() -> None:
        engine = await AsyncEngine.from_config(config_of(tiny_path), in_process=True)
        try:
            first = engine.generate("abc", LONG, request_id="same")
            await anext(first)
            with pytest.raises(InvalidRequestError, match="same"):
                await anext(engine.generate("abc", LONG, request_id="same"))
            await first.aclose()
            again = engine.generate("abc", LONG, request_id="same")
            assert not (await anext(again)).finished
            await again.aclose()
            await wait_until_idle(engine)
        finally:
            await engine.shutdown()

    asyncio.run(run())


def test_the_engine_process_ends_with_its_parent_whatever_it_has_to_do_and_removes_what_that_left(
    tiny_path: Path,
) -> None:
    script = f"""
import asyncio
from parhelion import AsyncEngine, EngineConfig, SamplingParams
async def run():
    config = EngineConfig(model={str(tiny_path)!r}, threads=1, kv_cache_memory=8 << 20, max_num_seqs=1)
    engine = await AsyncEngine.from_config(config)
    params = SamplingParams(max_tokens=400, ignore_eos=True)
    streams = [engine.generate("go on", params) for _ in range(500)]
    asked = [asyncio.create_task(anext(stream)) for stream in streams]
    await asked[0]
    print(engine._connection.pid, engine._connection._folder.name, flush=True)
    await asyncio.sleep(60)
asyncio.run(run())
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split()
        engine = psutil.Process(int(pid))
        assert Path(folder).exists()
        parent.kill()
    try:
        wait_for_end([engine], 30)
    except AssertionError:
        engine.kill()
        raise
    assert not Path(folder).exists()
