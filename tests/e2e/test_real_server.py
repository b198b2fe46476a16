"""A real server with a real engine, in processes of their own, driven by OpenAI's client over the loopback."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from parhelion import LLM, SamplingParams
from parhelion.bench.server_process import ServerProcess, running_server

HELLO = [{"role": "user", "content": "Hello, who are you?"}]
OPTIONS = ("--dtype", "float32", "--threads", "1", "--kv-cache-memory", "64MiB", "--max-num-seqs", "64")


@pytest.fixture(scope="module")
def server(tiny_path: Path) -> Iterator[ServerProcess]:
    with running_server(str(tiny_path), OPTIONS) as running:
        yield running
    assert running.exit_status() == 0


@pytest.fixture(autouse=True)
def _empty_afterwards(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test nothing runs, nothing waits, and no block is in use beyond the prefix cache."""
    yield
    if "server" in request.fixturenames:
        wait_until_empty(request.getfixturevalue("server"))


def metric(server: ServerProcess, name: str) -> float:
    text = httpx.get(f"{server.url}/metrics", timeout=30).text
    found = re.search(rf"^parhelion_{name} (\S+)$", text, re.MULTILINE)
    assert found is not None, f"no metric {name}"
    return float(found[1])


def wait_until_empty(server: ServerProcess) -> None:
    names = ("requests_running", "requests_waiting", "kv_blocks_in_use")
    deadline = time.monotonic() + 30
    while any(counts := [metric(server, name) for name in names]):
        assert time.monotonic() < deadline, f"{names} are {counts} half a minute after the test"
        time.sleep(0.05)


def client_of(server: ServerProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def async_client_of(server: ServerProcess) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


def test_completions_equal_the_offline_engine(server: ServerProcess, tiny_path: Path) -> None:
    prompts = ["Once upon a time", "def f(x):", "日本 🦊"]
    with LLM(str(tiny_path), dtype="float32", threads=1, kv_cache_memory=8 << 20) as llm:
        params = SamplingParams(temperature=0.9, seed=3, max_tokens=24, n=2)
        expected = [output.text for result in llm.generate(prompts, params) for output in result.outputs]
    answer = client_of(server).completions.create(
        model=server.model, prompt=prompts, temperature=0.9, seed=3, max_tokens=24, n=2
    )
    assert [choice.text for choice in answer.choices] == expected
    assert answer.usage.completion_tokens <= 24 * len(expected)


def test_chat_streams_the_same_text_as_whole(server: ServerProcess) -> None:
    client = client_of(server)
    options = {"model": server.model, "messages": HELLO, "max_tokens": 40, "seed": 5}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs_and_alternatives(server: ServerProcess) -> None:
    answer = client_of(server).chat.completions.create(
        model=server.model, messages=HELLO, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)


def test_a_stop_string_ends_the_text_before_it(server: ServerProcess) -> None:
    client = client_of(server)
    options = {"model": server.model, "prompt": "abc", "temperature": 0, "max_tokens": 60}
    text = client.completions.create(**options).choices[0].text
    stop = text[20:23]
    choice = client.completions.create(**options, stop=[stop]).choices[0]
    assert choice.text == text[: text.index(stop)]
    assert choice.finish_reason == "stop"


def test_a_repeated_prompt_is_served_from_the_prefix_cache(server: ServerProcess) -> None:
    client = client_of(server)
    options = {"model": server.model, "prompt": "a long prompt that fills some blocks. " * 4, "max_tokens": 2}
    client.completions.create(**options)
    again = client.completions.create(**options)
    assert again.usage.prompt_tokens_details.cached_tokens >= again.usage.prompt_tokens - 17
    assert metric(server, "prefix_cache_hit_tokens_total") > 0


def test_errors_name_the_parameter_and_harm_nobody(server: ServerProcess) -> None:
    client = client_of(server)
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=server.model, prompt="a", temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=server.model, prompt="x" * 600, max_tokens=4)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model=server.model, prompt="a", logit_bias={"99999": 1})
    assert caught.value.param == "logit_bias"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="a")
    assert client.completions.create(model=server.model, prompt="a", max_tokens=2).choices[0].finish_reason


def test_disconnects_in_mid_stream_free_their_blocks(server: ServerProcess) -> None:
    async def run() -> None:
        async with async_client_of(server) as client:

            async def read_three() -> None:
                stream = await client.completions.create(
                    model=server.model,
                    prompt="go on",
                    max_tokens=480,
                    stream=True,
                    extra_body={"ignore_eos": True},
                )
                for _ in range(3):
                    await anext(aiter(stream))
                await stream.close()

            await asyncio.gather(*(read_three() for _ in range(20)))

    generated = metric(server, "generation_tokens_total")
    asyncio.run(run())
    wait_until_empty(server)
    assert metric(server, "generation_tokens_total") - generated < 20 * 480


def test_a_chat_request_is_answered_in_the_middle_of_200_others(server: ServerProcess) -> None:
    async def run() -> None:
        async with async_client_of(server) as client:

            async def one(index: int) -> tuple[int, str | None]:
                stream = await client.completions.create(
                    model=server.model,
                    prompt=f"request number {index}",
                    max_tokens=20,
                    seed=index,
                    stream=True,
                    stream_options={"include_usage": True},
                    extra_body={"ignore_eos": True},
                )
                reason = None
                async for chunk in stream:
                    if chunk.choices:
                        reason = chunk.choices[0].finish_reason or reason
                    if chunk.usage:
                        tokens = chunk.usage.completion_tokens
                return tokens, reason

            others = [asyncio.create_task(one(index)) for index in range(200)]
            await asyncio.sleep(0.5)
            chat = await client.chat.completions.create(model=server.model, messages=HELLO, max_tokens=5)
            assert chat.usage.completion_tokens >= 1
            assert await asyncio.gather(*others) == [(20, "length")] * 200

    asyncio.run(run())


def test_sigterm_under_load_lets_streams_finish_and_exits_0(tiny_path: Path) -> None:
    async def run(server: ServerProcess) -> list[str | None]:
        async with async_client_of(server) as client:
            started = asyncio.Semaphore(0)

            async def one() -> str | None:
                reason = None
                stream = await client.completions.create(
                    model=server.model, prompt="a", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
                )
                async for chunk in stream:
                    started.release()
                    reason = chunk.choices[0].finish_reason or reason
                return reason

            tasks = [asyncio.create_task(one()) for _ in range(10)]
            for _ in range(20):
                await started.acquire()
            assert server.process is not None
            server.process.send_signal(signal.SIGTERM)
            return list(await asyncio.gather(*tasks))

    with running_server(str(tiny_path), OPTIONS) as server:
        assert asyncio.run(run(server)) == ["length"] * 10
        assert server.process is not None
        assert server.process.wait(30) == 0
