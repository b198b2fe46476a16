"""A real server on the loopback: the real OpenAI client, disconnects, many streams at once, and its end."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable

import httpx
import openai
import pytest

from parhelion.config import ServerConfig
from parhelion.errors import ConfigError, EngineDeadError
from parhelion.server.listener import bind

from .conftest import LiveServer, live_server
from .fake_engine import RECITAL, FakeEngine

pytestmark = pytest.mark.anyio
HELLO = [{"role": "user", "content": "Hello"}]
ENDLESS = {"messages": HELLO, "max_tokens": 2000}


def client_of(server: LiveServer) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=30)


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in the server's thread."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within half a minute"
        time.sleep(0.005)


async def test_openai_client_chats_streams_and_completes() -> None:
    with live_server(FakeEngine()) as server:
        async with client_of(server) as client:
            assert [model.id async for model in client.models.list()] == ["fake"]
            chat = await client.chat.completions.create(
                model="fake", messages=HELLO, max_tokens=10, n=2, logprobs=True, top_logprobs=1, seed=1
            )
            assert [choice.message.content for choice in chat.choices] == ["Grüße fr", "rüße fro"]
            assert chat.choices[0].logprobs.content[0].top_logprobs[0].token == "H"
            stream = await client.chat.completions.create(
                model="fake", messages=HELLO, max_tokens=40, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
            assert text == RECITAL.encode()[:40].decode()
            assert chunks[-1].usage.completion_tokens == 40
            completion = await client.completions.create(model="fake", prompt="a", stop="from", logprobs=1)
            assert completion.choices[0].text == "Grüße "
            assert completion.choices[0].finish_reason == "stop"


async def test_openai_client_sees_errors_under_their_classes() -> None:
    engine = FakeEngine()
    with live_server(engine) as server:
        async with client_of(server) as client:
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="other", messages=HELLO)
            with pytest.raises(openai.BadRequestError) as caught:
                await client.chat.completions.create(model="fake", messages=HELLO, temperature=-1)
            assert caught.value.param == "temperature"
            engine.fail_after = 5
            stream = await client.chat.completions.create(model="fake", messages=HELLO, stream=True)
            with pytest.raises(openai.APIError, match="died"):
                async for _ in stream:
                    pass


@pytest.mark.parametrize("streamed", [False, True])
async def test_disconnect_aborts_the_request_within_a_few_tokens(streamed: bool) -> None:
    engine = FakeEngine(delay_s=0.01)
    with live_server(engine) as server:
        async with httpx.AsyncClient() as client:
            body = {**ENDLESS, "stream": streamed}
            task = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=body))
            while not engine.tokens_made:
                await asyncio.sleep(0.005)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        gone = engine.tokens_made
        until(lambda: len(engine.aborted) == 1)
        assert engine.tokens_made <= gone + 20
        assert not engine.running
        metrics = httpx.get(f"{server.url}/metrics").text
        assert 'parhelion_requests_total{finish_reason="abort"} 1.0' in metrics


async def test_two_hundred_streams_at_once_are_all_complete() -> None:
    # Slow enough for the last to come before the first has gone, whatever else the machine does.
    engine = FakeEngine(delay_s=0.06)
    whole = RECITAL.encode()[:50].decode()
    with live_server(engine) as server:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:

            async def stream() -> str:
                text = ""
                body = {"prompt": "x", "max_tokens": 50, "stream": True}
                async with client.stream("POST", f"{server.url}/v1/completions", json=body) as response:
                    assert response.status_code == 200
                    async for line in response.aiter_lines():
                        if line.startswith("data: {"):
                            text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                return text

            texts = await asyncio.gather(*[stream() for _ in range(200)])
        assert set(texts) == {whole}
        assert engine.most_running > 100
        assert not engine.aborted


async def test_a_client_that_does_not_read_holds_up_nobody_and_loses_nothing() -> None:
    engine = FakeEngine("word " * 5000, max_model_len=1 << 17)
    body = json.dumps({"prompt": "x", "max_tokens": 24_000, "stream": True, "logprobs": 20}).encode()
    with live_server(engine) as server:
        url = httpx.URL(server.url)
        with socket.create_connection((url.host, url.port)) as slow:
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            slow.sendall(head.encode() + body)
            while not engine.tokens_made:
                await asyncio.sleep(0.005)
            async with httpx.AsyncClient() as client:
                quick = await client.post(f"{server.url}/v1/completions", json={"prompt": "y", "max_tokens": 5})
            assert quick.json()["choices"][0]["text"] == "word "
            while engine.running:  # the engine does not wait for the client
                await asyncio.sleep(0.05)
            answer = await asyncio.to_thread(read_all, slow)
    text = "".join(
        json.loads(line.removeprefix("data: "))["choices"][0]["text"]
        for line in answer.split("\n")
        if line.startswith("data: {")
    )
    assert text == "word " * 4800


def read_all(connection: socket.socket) -> str:
    """What the server sends until it closes the connection, without the framing of its chunks."""
    connection.settimeout(60)
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    data = b"".join(pieces)
    body = []
    start = data.index(b"\r\n\r\n") + 4
    while start < len(data):
        end = data.index(b"\r\n", start)
        size = int(data[start:end], 16)
        body.append(data[end + 2 : end + 2 + size])
        start = end + 2 + size + 2
    return b"".join(body).decode()


async def test_draining_lets_streams_end_and_refuses_new_requests() -> None:
    engine = FakeEngine(delay_s=0.02)
    with live_server(engine) as server:
        async with httpx.AsyncClient(timeout=30) as client:
            body = {"prompt": "x", "max_tokens": 200}
            running = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=body))
            while not engine.running:
                await asyncio.sleep(0.005)
            server.signal()
            while (health := await client.get(f"{server.url}/health")).status_code == 200:
                await asyncio.sleep(0.005)
            assert (health.status_code, health.json()["status"]) == (503, "draining")
            refused = await client.post(f"{server.url}/v1/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            answer = await running
            assert answer.json()["usage"]["completion_tokens"] == 200
        server.thread.join(30)
        assert not server.thread.is_alive()
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


@pytest.mark.parametrize("signals", [1, 2])
async def test_what_outlasts_the_drain_ends_with_an_error_event(signals: int) -> None:
    engine = FakeEngine(delay_s=0.02)
    timeout_s = 0.3 if signals == 1 else 60.0
    with live_server(engine, ServerConfig(drain_timeout_s=timeout_s)) as server:
        async with httpx.AsyncClient(timeout=30) as client:
            body = {**ENDLESS, "stream": True}
            running = asyncio.create_task(client.post(f"{server.url}/v1/chat/completions", json=body))
            while not engine.tokens_made:
                await asyncio.sleep(0.005)
            for _ in range(signals):
                server.signal()
            answer = await asyncio.wait_for(running, 30)
        assert answer.text.rstrip().split("\n\n")[-1].startswith("event: error\ndata: ")
        server.thread.join(30)
        assert not server.thread.is_alive()
    assert len(engine.aborted) == 1


async def test_death_of_the_engine_fails_all_streams_with_an_error() -> None:
    engine = FakeEngine(delay_s=0.01)
    with live_server(engine) as server:
        async with httpx.AsyncClient(timeout=30) as client:
            tasks = [
                asyncio.create_task(
                    client.post(f"{server.url}/v1/chat/completions", json={**ENDLESS, "stream": streamed})
                )
                for streamed in (True, False)
            ]
            while len(engine.running) < 2 or engine.tokens_made < 4:
                await asyncio.sleep(0.005)
            engine.die(EngineDeadError("the engine died"))
            streamed, whole = await asyncio.gather(*tasks)
            assert "event: error" in streamed.text
            assert whole.status_code == 503
            assert (await client.get(f"{server.url}/health")).status_code == 503


def test_taken_port_is_a_clear_error() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*--port"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 8000), ("127.0.0.1", 70_000), ("203.0.113.1", 0)])
def test_unusable_address_is_a_clear_error(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=host):
        bind(host, port)
