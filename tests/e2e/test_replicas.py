"""Several replicas answer as one engine does, go on when one of them ends, and leave nobody behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import pytest

from parhelion import LLM, AsyncEngine, EngineConfig, RequestOutput, SamplingParams
from parhelion.bench.server_process import running_server
from parhelion.config import ServerConfig
from parhelion.engine.replicas.replica import RestartPolicy
from parhelion.errors import ConfigError, EngineDeadError
from parhelion.server.app import create_app
from parhelion.types import EngineStats, Prompt
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of
from tests.processes import wait_for_end

LONG = SamplingParams(temperature=0, max_tokens=800, ignore_eos=True)
"""So long that all of some requests run at the same time, on a machine with other work too."""
SHORT = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
RESTARTS = RestartPolicy(first_s=0.05, most_s=0.2)

_Result = TypeVar("_Result")
Run = Callable[[Coroutine[Any, Any, _Result]], _Result]


def config_of(path: Path, **options: Any) -> EngineConfig:
    merged = {"kv_cache_memory": 8 << 20, "max_num_seqs": 32, "dp": 2, **options}
    return EngineConfig(model=str(path), dtype="float32", threads=1, device="cpu", **merged)


@pytest.fixture(scope="module")
def run() -> Iterator[Run[Any]]:
    """Runs coroutines in one event loop, in which an engine may outlive a test."""
    with asyncio.Runner() as runner:
        yield runner.run


@pytest.fixture(scope="module")
def engine(patient_path: Path, run: Run[Any]) -> Iterator[AsyncEngine]:
    """Two replicas, which every test leaves serving; at the end none of their processes is left."""
    started = run(AsyncEngine.from_config(config_of(patient_path), restarts=RESTARTS))
    yield started
    processes = [psutil.Process(each.process) for each in started.replicas]
    run(started.shutdown())
    assert not any(process.is_running() for process in processes)


async def answer(engine: AsyncEngine, prompt: Prompt, params: SamplingParams, **options: Any) -> RequestOutput:
    async for output in engine.generate(prompt, params, **options):
        latest = output
    return latest


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def all_serve(engine: AsyncEngine) -> bool:
    return all(each.serves for each in engine.replicas)


@pytest.fixture(scope="module")
def expected(tiny_path: Path) -> list[Tokens]:
    """What a single engine answers."""
    with LLM(str(tiny_path), dtype="float32", threads=1, kv_cache_memory=8 << 20, device="cpu") as llm:
        return tokens_of(llm.generate(PROMPTS, PARAMS))


def test_they_answer_as_one_engine_does_and_share_the_work(
    engine: AsyncEngine, run: Run[Any], expected: list[Tokens]
) -> None:
    async def together() -> list[RequestOutput]:
        return await asyncio.gather(*(answer(engine, *each) for each in zip(PROMPTS, PARAMS, strict=True)))

    for _ in range(2):
        assert tokens_of(run(together())) == expected
    stats: EngineStats = run(engine.stats())
    each = [one.stats for one in stats.replicas]
    assert len(each) == 2
    assert all(one.generation_tokens_total > 0 for one in each)
    for name in ("generation_tokens_total", "prefix_cache_hit_tokens_total", "num_blocks", "num_blocks_in_use"):
        assert getattr(stats, name) == sum(getattr(one, name) for one in each)
    assert (stats.num_running, stats.num_waiting, stats.num_blocks_in_use) == (0, 0, 0)
    assert stats.prefix_cache_hit_tokens_total > 0


def test_a_request_goes_where_its_prefix_is_and_others_elsewhere(engine: AsyncEngine, run: Run[Any]) -> None:
    async def given() -> list[int]:
        return [one.stats.prompt_tokens_total for one in (await engine.stats()).replicas]

    async def replica_that_took(prompt: list[int]) -> tuple[int, RequestOutput]:
        before = await given()
        output = await answer(engine, {"prompt_token_ids": prompt}, SHORT)
        (taken,) = [index for index, tokens in enumerate(await given()) if tokens > before[index]]
        return taken, output

    async def route() -> None:
        one, other = list(range(100, 196)), list(range(300, 396))
        (first, _), (second, _) = await replica_that_took(one), await replica_that_took(other)
        assert {first, second} == {0, 1}, "nothing waits anywhere: they take turns"
        for prompt, replica in ((one, first), (one, first), (other, second), (one, first)):
            taken, output = await replica_that_took([*prompt, 7, 8])
            assert (taken, output.num_cached_tokens) == (replica, 96)

    run(route())


def test_samples_of_a_request_stay_together(engine: AsyncEngine, run: Run[Any]) -> None:
    async def sample() -> list[int]:
        before = [one.stats.generation_tokens_total for one in (await engine.stats()).replicas]
        await answer(engine, "abc", SamplingParams(n=4, seed=1, max_tokens=8, ignore_eos=True))
        after = [one.stats.generation_tokens_total for one in (await engine.stats()).replicas]
        return sorted(after[index] - before[index] for index in range(2))

    assert run(sample()) == [0, 32]


def test_a_request_that_is_given_up_ends_in_its_replica(engine: AsyncEngine, run: Run[Any]) -> None:
    async def give_up() -> None:
        streams = [engine.generate("go on", LONG) for _ in range(4)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        assert [one.stats.num_running for one in (await engine.stats()).replicas] == [2, 2]
        for stream in streams:
            await stream.aclose()
        stats = await engine.stats()
        assert [one.stats.num_running for one in stats.replicas] == [0, 0]
        assert stats.num_blocks_in_use == 0

    run(give_up())


def test_a_killed_replica_fails_only_what_was_seen_of_it_and_comes_back(engine: AsyncEngine, run: Run[Any]) -> None:
    transport = httpx.ASGITransport(create_app(engine, ServerConfig()))

    async def kill() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            assert (await client.get("/health")).json()["status"] == "ok"
            streams = [engine.generate("go on", LONG) for _ in range(6)]
            await asyncio.gather(*(anext(stream) for stream in streams))
            body = {"prompt": "go on", "temperature": 0, "max_tokens": 800, "ignore_eos": True}
            in_events = [
                asyncio.create_task(client.post("/v1/completions", json={**body, "stream": True})) for _ in range(2)
            ]
            await until_they_run(engine, [4, 4])
            unseen = [asyncio.create_task(answer(engine, "go on", LONG, whole=True)) for _ in range(2)]
            in_one_piece = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(2)]
            dead, alive = engine.replicas
            before = await until_they_run(engine, [6, 6])
            os.kill(dead.process or 0, signal.SIGKILL)

            killed = time.monotonic()
            said = f"replica 0: the engine's process {dead.process} was killed by SIGKILL"
            # The other replica's streams may take longer than starting this one again.
            health = await client.get("/health")
            while health.json()["status"] == "ok" and time.monotonic() - killed < 30:
                await asyncio.sleep(0.01)
                health = await client.get("/health")
            assert (health.status_code, health.json()["status"], health.json()["serving"]) == (200, "degraded", 1)
            ends = await asyncio.gather(*(drained(stream) for stream in streams))
            assert time.monotonic() - killed < 30
            lost = [end for end in ends if isinstance(end, EngineDeadError)]
            (text,) = {end for end in ends if isinstance(end, str)}
            assert len(lost) == 3
            assert all(said in str(end) for end in lost)
            assert {(await task).outputs[0].text for task in unseen} == {text}
            assert {(await task).json()["choices"][0]["text"] for task in in_one_piece} == {text}
            (failed,) = [text for text in [(await task).text for task in in_events] if "event: error" in text]
            assert said in failed

            await until(lambda: all_serve(engine))
            again, other = engine.replicas
            assert other == alive
            assert (again.restarts, again.process != dead.process) == (1, True)
            assert not psutil.pid_exists(dead.process or 0)
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"], health.json()["serving"]) == (200, "ok", 2)
            assert "SIGKILL" in health.json()["replicas"][0]["error"]
            after = await engine.stats()
            assert after.replicas[0].stats.generation_tokens_total >= before.replicas[0].stats.generation_tokens_total
            outputs = await asyncio.gather(*(answer(engine, "again", SHORT) for _ in range(4)))
            assert len({str(output.outputs[0].token_ids) for output in outputs}) == 1
            figures = (await client.get("/metrics")).text
            assert 'parhelion_replica_restarts_total{replica="0"} 1.0' in figures
            assert 'parhelion_replica_up{replica="0"} 1.0' in figures
            assert "\nparhelion_engine_up 1.0" in figures

    run(kill())


def test_a_replica_that_is_stopped_is_killed_and_comes_back_and_what_was_not_seen_is_answered(
    engine: AsyncEngine, run: Run[Any], expected: list[Tokens]
) -> None:
    async def stop() -> None:
        await until(lambda: all_serve(engine))
        hung, restarts = engine.replicas[1].process or 0, engine.replicas[1].restarts
        streams = [engine.generate("go on", LONG) for _ in range(2)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        os.kill(hung, signal.SIGSTOP)
        unseen = [asyncio.create_task(answer(engine, *each)) for each in zip(PROMPTS, PARAMS, strict=True)]
        ends = await asyncio.gather(*(drained(stream) for stream in streams))
        (error,) = [end for end in ends if isinstance(end, EngineDeadError)]
        assert f"replica 1: the engine's process {hung} hung: it gave no sign of life for 8 s, and was killed" in str(
            error
        )
        assert tokens_of(await asyncio.gather(*unseen)) == expected
        await until(lambda: all_serve(engine))
        assert engine.replicas[1].restarts == restarts + 1
        assert not psutil.pid_exists(hung)

    run(stop())


async def until_they_run(engine: AsyncEngine, counts: list[int]) -> EngineStats:
    """Wait until so many requests run in each replica."""
    deadline = time.monotonic() + 30
    while True:
        stats = await engine.stats()
        if [one.stats.num_running for one in stats.replicas] == counts:
            return stats
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def drained(stream: Any) -> EngineDeadError | str:
    """The whole text, or the error that ended it."""
    try:
        async for output in stream:
            text: str = output.outputs[0].text
    except EngineDeadError as error:
        return error
    return text


def test_without_any_replica_requests_are_503_until_one_is_back(engine: AsyncEngine, run: Run[Any]) -> None:
    transport = httpx.ASGITransport(create_app(engine, ServerConfig()))
    body = {"prompt": "x", "max_tokens": 2}

    async def kill_both() -> None:
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
            for each in engine.replicas:
                os.kill(each.process or 0, signal.SIGKILL)
            await until(lambda: not any(each.serves for each in engine.replicas))
            health = await client.get("/health")
            assert (health.status_code, health.json()["status"], health.json()["serving"]) == (503, "engine_dead", 0)
            refused = await client.post("/v1/completions", json=body)
            assert refused.status_code == 503
            assert "no replica serves: replica 0 is " in refused.json()["error"]["message"]
            assert "\nparhelion_engine_up 0.0" in (await client.get("/metrics")).text
            await until(lambda: any(each.serves for each in engine.replicas))
            assert (await client.post("/v1/completions", json=body)).status_code == 200
            await until(lambda: all_serve(engine))
            assert (await client.get("/health")).json()["status"] == "ok"

    run(kill_both())


def test_offline_prompts_are_shared_and_survive_a_replica(tiny_path: Path, expected: list[Tokens]) -> None:
    with LLM(**vars(config_of(tiny_path))) as llm:
        assert llm.info.dp == 2
        assert tokens_of(llm.generate(PROMPTS, PARAMS)) == expected
        replicas = llm.stats().replicas
        assert [one.stats.generation_tokens_total > 0 for one in replicas] == [True, True]
        killed: list[int] = []

        def kill_one(done: int, total: int) -> None:
            if not killed:
                killed.append(replicas[1].state.process or 0)
                os.kill(killed[0], signal.SIGKILL)

        assert tokens_of(llm.generate(PROMPTS, PARAMS, progress=kill_one)) == expected
        assert killed
    assert not any(psutil.pid_exists(one.state.process or 0) for one in replicas)


def test_replicas_are_refused_in_one_process(tiny_path: Path) -> None:
    with pytest.raises(ConfigError, match="dp is 2, and one process holds one engine"):
        asyncio.run(AsyncEngine.from_config(config_of(tiny_path), in_process=True))


def test_a_server_of_two_drains_and_leaves_nothing(patient_path: Path) -> None:
    options = ("--dtype", "float32", "--threads", "1", "--kv-cache-memory", "8MiB", "--device", "cpu", "--dp", "2")
    body = {"prompt": "go on", "max_tokens": 500, "ignore_eos": True, "temperature": 0}
    with running_server(str(patient_path), options) as server:
        assert server.process is not None
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len([child for child in children if "parhelion.engine.process" in child.cmdline()]) == 2

        async def ask_and_stop() -> list[httpx.Response]:
            async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
                asked = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(4)]
                while "\nparhelion_requests_running 4.0" not in (await client.get("/metrics")).text:
                    assert not any(request.done() for request in asked)
                    await asyncio.sleep(0.02)
                server.process.send_signal(signal.SIGTERM)
                return await asyncio.gather(*asked)

        answers = asyncio.run(ask_and_stop())
        assert [each.json()["usage"]["completion_tokens"] for each in answers] == [500] * 4
        assert server.process.wait(60) == 0
    wait_for_end(children, 10)
