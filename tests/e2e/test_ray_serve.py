"""The application for Ray Serve: its options, and what Serve calls on a replica. Serve itself is stood in for here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import psutil
import pytest

from parhelion.config import EngineConfig, ServerConfig
from parhelion.engine.connection import ProcessConnection
from parhelion.errors import ConfigError, EngineDeadError
from parhelion.ray import ServedEngine, deployment, options_of


class FakeServe(ModuleType):
    """``ray.serve`` as far as it is used: keeps what was asked of it."""

    def __init__(self) -> None:
        super().__init__("ray.serve")
        self.options: dict[str, Any] = {}

    def ingress(self) -> Callable[[type[Any]], type[Any]]:
        return lambda kind: kind

    def deployment(self, **options: Any) -> Callable[[type[Any]], Any]:
        self.options = options

        class Bound:
            def __init__(self, kind: type[Any]) -> None:
                self.kind = kind

            def bind(self, *arguments: Any) -> tuple[Any, ...]:
                return (self.kind, *arguments)

        return Bound


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> FakeServe:
    import ray

    fake = FakeServe()
    monkeypatch.setitem(sys.modules, "ray.serve", fake)
    monkeypatch.setattr(ray, "serve", fake, raising=False)
    return fake


def test_arguments_are_the_options_of_engine_and_server_as_values_or_as_text(serve: FakeServe) -> None:
    args = {"model": "any", "tp": "2", "kv_cache_memory": "2GiB", "overlap": "false", "api_keys": "key", "max_n": 4}
    built: Any = deployment({**args, "deployment": {"num_replicas": 3}})
    engine = EngineConfig(model="any", tp=2, kv_cache_memory=2 << 30, overlap=False)
    assert built == (ServedEngine, engine, ServerConfig(api_keys=("key",), max_n=4))
    assert serve.options == {
        "name": "parhelion",
        "num_replicas": 3,
        "max_ongoing_requests": 1024,
        "ray_actor_options": {"num_gpus": 2},
    }


@pytest.mark.parametrize(
    ("options", "gpus"),
    [({"tp": 2, "dp": 2}, 4), ({"tp": 2, "pp": 2}, 4), ({"device": "cpu"}, 0), ({"tp": 2, "executor": "ray"}, 0)],
)
def test_serve_gives_gpus_to_engines_that_do_not_ask_ray_themselves(
    serve: FakeServe, options: dict[str, Any], gpus: int
) -> None:
    deployment({"model": "any", **options})
    assert serve.options["ray_actor_options"] == {"num_gpus": gpus}
    deployment({"model": "any", **options, "deployment": {"ray_actor_options": {"num_gpus": 0.5}}})
    assert serve.options["ray_actor_options"] == {"num_gpus": 0.5}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"model": "any", "port": 80}, "unknown argument port; there are deployment, api_keys, block_size"),
        ({"tp": 2}, "an argument cannot be used: .*model"),
        ({"model": "any", "tp": "two"}, "an argument cannot be used: .*tp"),
        ({"model": "any", "tp": "0"}, "tp is 0; it must be at least 1"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_by_name(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        options_of(args)


def test_without_serve_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'ray\[serve\]'"):
        deployment({"model": "any"})


# The interpreter calls it once more than Serve does, and waits for nothing.
@pytest.mark.filterwarnings("ignore:coroutine 'ServedEngine.__del__' was never awaited")
def test_a_replica_answers_says_that_it_is_dead_and_ends_its_engine(tiny_path: Path) -> None:
    config = EngineConfig(model=str(tiny_path), dtype="float32", threads=1, device="cpu", kv_cache_memory=8 << 20)

    async def run() -> None:
        served = ServedEngine.__new__(ServedEngine)
        await served.__init__(config, ServerConfig(served_model_name="tiny"))
        assert isinstance(served._engine._connection, ProcessConnection)
        process = psutil.Process(served._engine._connection.pid)
        transport = httpx.ASGITransport(served.__serve_build_asgi_app__())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"model": "tiny", "prompt": "abc", "max_tokens": 3, "ignore_eos": True}
            answer = (await client.post("/v1/completions", json=body)).json()
            assert answer["usage"]["completion_tokens"] == 3
            served.check_health()
            process.kill()
            while (await client.get("/health")).status_code == 200:
                await asyncio.sleep(0.05)
        with pytest.raises(EngineDeadError):
            served.check_health()
        await served.__del__()
        assert not process.is_running()

    asyncio.run(run())
