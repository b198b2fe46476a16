"""Whatever the body: a status of 400 or the like, in time, with an OpenAI-shaped error; never a 500."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parhelion.config import ServerConfig

from .conftest import client_of
from .fake_engine import FakeEngine

PATHS = ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize")
VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "model": "fake",
        "messages": [{"role": "system", "content": "Be"}, {"role": "user", "content": [{"type": "text", "text": "a"}]}],
        "temperature": 0.5,
        "max_tokens": 3,
        "n": 2,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"65": 1},
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "response_format": {"type": "text"},
        "chat_template_kwargs": {"a": [1]},
    },
    "/v1/completions": {
        "prompt": ["a", "b"],
        "max_tokens": 3,
        "echo": True,
        "logprobs": 1,
        "prompt_logprobs": 1,
        "stop": "x",
        "stop_token_ids": [1],
        "top_k": 3,
        "priority": 1,
        "min_tokens": 1,
        "n": 1,
        "best_of": 1,
    },
    "/tokenize": {"prompt": "abc", "return_token_strs": True},
    "/detokenize": {"tokens": [1, 2, 3]},
}

HELLO = {"messages": [{"role": "user", "content": "a"}]}

ODD_VALUES = st.sampled_from(
    (
        *(None, True, False, -1, 0, 1, 1.5, -0.0, 1e308, 2**31, 2**63, -(2**63), 2**64, 10**400),
        *("", "a", "\0", "🌞" * 50, "\ud800", {"\udfff": 1}, float("nan"), float("inf")),
        *([], {}, [[]], [None], {"": None}, ["a", 1], [[1], "a"], {"type": "image_url"}, [{"role": "user"}], [2**70]),
    )
)
ANY_JSON = st.recursive(
    ODD_VALUES | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


Check = Callable[..., list[int]]


@pytest.fixture(scope="module")
def check() -> Iterator[Check]:
    """Sends bodies to a path of an application, which lives through all tests here; the statuses."""
    with asyncio.Runner() as runner:
        opened = AsyncExitStack()
        application = client_of(FakeEngine(), ServerConfig(max_body_bytes=1 << 20))
        client = runner.run(opened.enter_async_context(application))

        async def send(path: str, contents: tuple[bytes, ...]) -> list[int]:
            statuses = []
            async with asyncio.timeout(60):
                for content in contents:
                    response = await client.post(path, content=content, headers={"Content-Type": "application/json"})
                    statuses.append(response.status_code)
                    check_answer(response)
                assert (await client.get("/health")).status_code == 200
            return statuses

        yield lambda path, *contents: runner.run(send(path, contents))
        runner.run(opened.aclose())


def check_answer(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404, 413), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["message"]
        assert len(response.content) < 5000
    elif response.headers["content-type"].startswith("application/json"):
        json.loads(response.content, parse_constant=lambda name: pytest.fail(f"{name} in an answer"))
    else:
        assert response.text.endswith("data: [DONE]\n\n")


def encoded(value: object) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def mutated(path: str) -> st.SearchStrategy[bytes]:
    """A valid body with some fields replaced, dropped or added."""
    valid = VALID[path]
    changes = st.dictionaries(st.sampled_from([*valid, "zebra", ""]), ODD_VALUES | ANY_JSON, max_size=3)
    drops = st.sets(st.sampled_from(list(valid)), max_size=2)
    return st.builds(
        lambda change, drop: encoded({key: value for key, value in {**valid, **change}.items() if key not in drop}),
        changes,
        drops,
    )


@pytest.mark.parametrize("path", PATHS)
def test_valid_bodies_are_valid(check: Check, path: str) -> None:
    assert check(path, encoded(VALID[path])) == [200]


@pytest.mark.parametrize("path", PATHS)
@QUICK
@given(data=st.data())
def test_mutated_bodies_never_fail_the_server(check: Check, path: str, data: st.DataObject) -> None:
    check(path, *data.draw(st.lists(mutated(path), min_size=1, max_size=6)))


@pytest.mark.parametrize("path", PATHS)
@QUICK
@given(value=ANY_JSON, cut=st.integers(0, 40), junk=st.binary(max_size=30))
def test_garbage_never_fails_the_server(check: Check, path: str, value: object, cut: int, junk: bytes) -> None:
    whole = encoded(value)
    truncated = encoded(VALID[path])[:cut]
    check(path, whole, truncated, junk, whole + junk)


NESTED = 100_000
HARD_BODIES = {
    "nothing": b"",
    "nested lists": b"[" * NESTED,
    "nested objects": b'{"a":' * NESTED,
    "nested and closed": b'{"metadata":' + b"[" * NESTED + b"]" * NESTED + b"}",
    "nested template variables": b'{"messages":[{"role":"user","content":"a"}],"chat_template_kwargs":{"a":'
    + b"[" * 900
    + b"]" * 900
    + b"}}",
    "nested prompt": b'{"prompt":' + b"[" * NESTED + b"]" * NESTED + b"}",
    "huge integer": b'{"prompt":"a","max_tokens":' + b"9" * 100_000 + b"}",
    "huge seed": b'{"prompt":"a","seed":' + b"9" * 5000 + b"}",
    "huge float": b'{"prompt":"a","temperature":1e99999}',
    "huge key": b'{"' + b"k" * 500_000 + b'":1}',
    "NaN": b'{"prompt":"a","temperature":NaN}',
    "infinity": b'{"prompt":"a","temperature":-Infinity}',
    "lone surrogate": b'{"prompt":"\\ud800x"}',
    "encoded surrogate": b'{"prompt":"\xed\xa0\x80"}',
    "surrogate key": b'{"\\ud800":1}',
    "latin-1": '{"prompt":"é"}'.encode("latin-1"),
    "UTF-16": '{"prompt":"a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"prompt":"a"}',
    "two values": b'{"prompt":"a"}{"prompt":"b"}',
    "array": b'["prompt"]',
    "many unknown fields": b"{" + b",".join(b'"f%d":0' % number for number in range(50_000)) + b"}",
    "long stop list": encoded({"prompt": "a", "stop": ["x"] * 100_000}),
    "long logit bias": encoded({"prompt": "a", "logit_bias": {str(number): 1 for number in range(50_000)}}),
}


@pytest.mark.parametrize("path", PATHS)
def test_hard_bodies_are_refused(check: Check, path: str) -> None:
    assert sys.getrecursionlimit() < NESTED
    statuses = dict(zip(HARD_BODIES, check(path, *HARD_BODIES.values()), strict=True))
    template = "nested template variables"  # harmless where the template does not look at them
    assert statuses.pop(template) == (200 if path in ("/v1/chat/completions", "/tokenize") else 400)
    assert set(statuses.values()) == {400}, statuses


def test_the_last_of_equal_keys_counts(check: Check) -> None:
    assert check("/v1/completions", b'{"prompt":"a","n":0,"n":1}', b'{"prompt":"a","n":1,"n":0}') == [200, 400]


def test_unknown_fields_are_no_error_if_they_are_null(check: Check) -> None:
    bodies = [
        b'{"prompt":"a","zebra":null, "yak" : null }',
        b'{"prompt":"a","zebra":null,"yak":2}',
        b'{"prompt":"a","zebra":null,"n":"1"}',
        b'{"zebra":null}',
    ]
    assert check("/v1/completions", *bodies) == [200, 400, 400, 400]


def error_of(path: str, content: bytes) -> dict[str, str]:
    async def ask() -> dict[str, str]:
        async with client_of(FakeEngine()) as client:
            error: dict[str, str] = (await client.post(path, content=content)).json()["error"]
            return error

    return asyncio.run(ask())


def test_unknown_fields_are_all_named() -> None:
    error = error_of("/v1/completions", b'{"prompt":"a","zebra":1,"yak":2,"emu":null}')
    assert "zebra" in error["message"]
    assert "yak" in error["message"]
    assert "emu" not in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"extra_body": {"top_k": 5}}, "extra_body", "beside the other fields"),
        ({"messages": [{"role": "user", "content": "a", "mood": 1}]}, "messages[0].mood", "messages[0].mood"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "messages[0].role", "'bot'; a role is one of system, "),
        ({"stream_options": {"often": True}, "stream": True}, "stream_options.often", "stream_options.often"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "a key of logit_bias"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "21"),
    ],
)
def test_what_is_wrong_inside_a_field_is_named(fields: dict[str, Any], param: str, said: str) -> None:
    error = error_of("/v1/chat/completions", encoded({**HELLO, **fields}))
    assert error["param"] == param
    assert said in error["message"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (gzip.compress(b'{"prompt":"a"}'), "compressed"), ('{"prompt":"é"}'.encode("latin-1"), "UTF-8")],
    # Not of the bytes, which hold the time: processes that share the tests would find different ones.
    ids=["empty", "compressed", "UTF-8"],
)
def test_a_body_that_is_no_text_is_told_so(content: bytes, said: str) -> None:
    assert said in error_of("/v1/completions", content)["message"]
