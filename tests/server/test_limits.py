"""What the server refuses, with which status, and what a failing engine looks like from outside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest

from parhelion.config import ServerConfig
from parhelion.errors import InvalidRequestError

from .conftest import client_of
from .fake_engine import FakeEngine

pytestmark = pytest.mark.anyio
URL = "/v1/completions"
BODY = {"prompt": "x", "max_tokens": 5}


async def until(condition: object) -> None:
    """Wait for a callable to become true, half a minute at most."""
    assert callable(condition)
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen within half a minute")


@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "Bearer ", "Bearer", "Basic right", "right", "Bearer right x"]
)
async def test_wrong_keys_are_401(engine: FakeEngine, header: str | None) -> None:
    async with client_of(engine, ServerConfig(api_keys=("right", "other"))) as client:
        response = await client.post(URL, json=BODY, headers={"Authorization": header} if header else {})
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert "x-request-id" in response.headers
    assert not engine.params


@pytest.mark.parametrize("header", ["Bearer right", "bearer other", "Bearer  right "])
async def test_every_accepted_key_opens(engine: FakeEngine, header: str) -> None:
    async with client_of(engine, ServerConfig(api_keys=("right", "other"))) as client:
        assert (await client.post(URL, json=BODY, headers={"Authorization": header})).status_code == 200


async def test_a_missing_and_a_wrong_key_are_told_apart(engine: FakeEngine) -> None:
    async with client_of(engine, ServerConfig(api_keys=("right",))) as client:
        missing = (await client.get("/v1/models")).json()["error"]["message"]
        wrong = (await client.get("/v1/models", headers={"Authorization": "Bearer secret"})).json()["error"]["message"]
    assert missing.startswith("No API key came")
    assert wrong.startswith("The API key of this request is not accepted")
    assert "secret" not in wrong
    assert "Authorization: Bearer" in missing


async def test_only_health_is_open_without_a_key(engine: FakeEngine) -> None:
    async with client_of(engine, ServerConfig(api_keys=("right",))) as client:
        assert (await client.get("/health")).status_code == 200
        for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/docs", "/nothing"):
            assert (await client.get(path)).status_code == 401, path


async def test_key_check_knows_the_root_path(engine: FakeEngine) -> None:
    async with client_of(engine, ServerConfig(api_keys=("right",), root_path="/llm")) as client:
        assert (await client.get("/llm/health")).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/llm/v1/models")).status_code == 401


async def test_large_bodies_are_413_declared_or_in_chunks(engine: FakeEngine) -> None:
    async with client_of(engine, ServerConfig(max_body_bytes=1000)) as client:

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(20):
                yield b" " * 100

        for response in (await client.post(URL, content=b" " * 1001), await client.post(URL, content=pieces())):
            assert response.status_code == 413
            assert "1000" in response.json()["error"]["message"]
        exact = json.dumps(BODY).encode().ljust(1000)
        assert (await client.post(URL, content=exact)).status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'parhelion_request_errors_total{type="invalid_request_error"} 2.0' in metrics


async def test_too_many_at_once_are_429_and_places_come_back() -> None:
    engine = FakeEngine(delay_s=0.02)
    async with client_of(engine, ServerConfig(max_concurrent_requests=2)) as client:
        running = [asyncio.create_task(client.post(URL, json=BODY)) for _ in range(2)]
        await until(lambda: len(engine.running) == 2)
        refused = await client.post(URL, json=BODY)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert [(await task).status_code for task in running] == [200, 200]
        assert (await client.post(URL, json=BODY)).status_code == 200


async def test_more_prompts_than_the_server_holds_are_400(engine: FakeEngine) -> None:
    async with client_of(engine, ServerConfig(max_concurrent_requests=2)) as client:
        assert (await client.post(URL, json={**BODY, "prompt": ["a", "b"]})).status_code == 200
        response = await client.post(URL, json={**BODY, "prompt": ["a", "b", "c"]})
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.parametrize("streamed", [False, True])
async def test_full_queue_is_429_and_other_prompts_of_the_body_are_aborted(streamed: bool) -> None:
    engine = FakeEngine(delay_s=0.01)
    engine.max_running = 1
    async with client_of(engine) as client:
        response = await client.post(URL, json={**BODY, "prompt": ["a", "b"], "stream": streamed})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "queue_full"
    assert "retry-after" in response.headers
    assert len(engine.aborted) == 1
    assert not engine.running


@pytest.mark.parametrize("streamed", [False, True])
async def test_dead_engine_is_503(client: httpx.AsyncClient, engine: FakeEngine, streamed: bool) -> None:
    engine.is_dead = True
    response = await client.post(URL, json={**BODY, "stream": streamed})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_dead")


@pytest.mark.parametrize("streamed", [False, True])
async def test_engines_own_refusal_keeps_its_status(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    engine.fail_after, engine.failure = 0, InvalidRequestError("needs 9 blocks; there are 4", "prompt")
    response = await client.post(URL, json={**BODY, "stream": streamed})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")


async def test_death_in_mid_stream_is_an_error_event_at_the_end(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.fail_after = 3
    response = await client.post(URL, json={**BODY, "stream": True})
    assert response.status_code == 200
    *chunks, last = response.text.strip().split("\n\n")
    assert chunks
    name, data = last.split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["code"] == "engine_dead"


@pytest.mark.parametrize("streamed", [False, True])
async def test_unforeseen_failure_is_a_500_without_insides(
    client: httpx.AsyncClient, engine: FakeEngine, streamed: bool
) -> None:
    engine.fail_after, engine.failure = 0, RuntimeError("secret path")
    response = await client.post(URL, json={**BODY, "stream": streamed})
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "internal_error"
    assert "secret" not in response.text
    assert "x-request-id" in response.headers
    assert (await client.get("/health")).status_code == 200
