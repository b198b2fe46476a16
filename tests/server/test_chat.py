"""``/v1/chat/completions``."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import client_of
from .events import chunks_of
from .fake_engine import RECITAL, FakeEngine, recited

pytestmark = pytest.mark.anyio
URL = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": HELLO, "max_tokens": 20, **fields}


async def test_answer_has_openai_shape_and_counts(client: httpx.AsyncClient) -> None:
    answer = (await client.post(URL, json=body())).json()
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == "fake"
    (choice,) = answer["choices"]
    assert choice["message"] == {"content": recited(20), "role": "assistant", "refusal": None}
    assert choice["finish_reason"] == "length"
    prompt = len("user: Hello\nassistant:")
    assert answer["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 20,
        "total_tokens": prompt + 20,
        "prompt_tokens_details": {"cached_tokens": prompt // 2},
    }


async def test_stream_adds_up_to_the_whole_answer(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json=body(stream=True, max_tokens=300))
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = chunks_of(response.text)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    first, last = chunks[0]["choices"][0], chunks[-1]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": ""}
    assert (last["delta"], last["finish_reason"]) == ({}, "length")
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])
    assert all("usage" not in chunk for chunk in chunks)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    whole = (await client.post(URL, json=body(max_tokens=300))).json()
    assert text == whole["choices"][0]["message"]["content"]


async def test_usage_chunk_comes_last_and_only_when_asked(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, json=body(stream=True, stream_options={"include_usage": True}))
    *chunks, last = chunks_of(response.text)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 20


async def test_n_answers_are_told_apart_in_both_forms(client: httpx.AsyncClient) -> None:
    whole = (await client.post(URL, json=body(n=3))).json()["choices"]
    texts = [choice["message"]["content"] for choice in whole]
    assert [choice["index"] for choice in whole] == [0, 1, 2]
    assert len(set(texts)) == 3
    chunks = chunks_of((await client.post(URL, json=body(n=3, stream=True))).text)
    streamed = ["", "", ""]
    for chunk in chunks:
        choice = chunk["choices"][0]
        streamed[choice["index"]] += choice["delta"].get("content", "")
    assert streamed == texts


async def test_stop_string_cuts_the_text_and_is_never_streamed(client: httpx.AsyncClient) -> None:
    asked = body(stop=["the façade"], max_tokens=100)
    whole = (await client.post(URL, json=asked)).json()["choices"][0]
    assert whole["message"]["content"] == "Grüße from "
    assert whole["finish_reason"] == "stop"
    assert whole["stop_reason"] == "the façade"
    chunks = chunks_of((await client.post(URL, json={**asked, "stream": True})).text)
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Grüße from "
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("streamed", [False, True])
async def test_logprobs_have_an_entry_a_token_with_its_bytes(client: httpx.AsyncClient, streamed: bool) -> None:
    asked = body(logprobs=True, top_logprobs=2, max_tokens=5, stream=streamed)
    response = await client.post(URL, json=asked)
    if streamed:
        pieces = [chunk["choices"][0]["logprobs"] for chunk in chunks_of(response.text)]
        content = [entry for piece in pieces if piece for entry in piece["content"]]
    else:
        content = response.json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]) == RECITAL.encode()[:5]
    first = content[0]
    assert (first["token"], first["logprob"]) == ("G", -1.0)
    assert [top["token"] for top in first["top_logprobs"]] == ["H", "G"]
    assert [top["logprob"] for top in first["top_logprobs"]] == [-0.5, -1.0]


async def test_logprobs_without_alternatives_have_empty_lists(client: httpx.AsyncClient) -> None:
    answer = (await client.post(URL, json=body(logprobs=True))).json()
    assert {len(entry["top_logprobs"]) for entry in answer["choices"][0]["logprobs"]["content"]} == {0}


async def test_all_fields_reach_the_engine(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    asked = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1.5,
        "repetition_penalty": 1.2,
        "logit_bias": {"65": -100, "66": 5},
        "seed": -5,
        "stop": ["x", "y"],
        "stop_token_ids": [7],
        "min_tokens": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "priority": -3,
    }
    assert (await client.post(URL, json=body(**asked))).status_code == 200
    ((request_id, params),) = engine.params.items()
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 0.5, 7, 0.1)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (1, -1.5, 1.2)
    assert params.logit_bias == {65: -100, 66: 5}
    assert (params.seed, params.stop, params.stop_token_ids) == (-5, ("x", "y"), (7,))
    assert (params.min_tokens, params.max_tokens, params.ignore_eos) == (2, 20, True)
    assert (params.skip_special_tokens, params.include_stop_str_in_output) == (False, True)
    assert engine.priorities[request_id] == -3


async def test_max_completion_tokens_wins_and_without_either_the_room_is_used(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    await client.post(URL, json=body(max_completion_tokens=3))
    await client.post(URL, json={"messages": HELLO})
    first, second = engine.params.values()
    assert first.max_tokens == 3
    assert second.max_tokens == engine.max_model_len - len("user: Hello\nassistant:")


async def test_messages_become_the_templates_prompt(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}]
    await client.post(URL, json=body(messages=messages))
    await client.post(URL, json=body(add_generation_prompt=False))
    await client.post(URL, json=body(continue_final_message=True))
    prompts = [bytes(ids).decode() for ids in engine.prompts.values()]
    assert prompts == ["system: Be brief\nuser: a\nb\nassistant:", "user: Hello\n", "user: Hello"]


async def test_long_messages_are_tokenized_too(engine: FakeEngine) -> None:
    engine.max_model_len = 1 << 20
    async with client_of(engine) as client:
        long = [{"role": "user", "content": "x" * 50_000}]
        assert (await client.post(URL, json=body(messages=long))).json()["usage"]["prompt_tokens"] > 50_000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "tool", "content": "4"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "4"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {}}, "response_format"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"chat_template_kwargs": {"fail": 1}}, "messages"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
async def test_unusable_field_is_named(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post(URL, json=body(**fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_harmless_openai_fields_are_accepted(client: httpx.AsyncClient) -> None:
    fields = {
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": True,
        "temperature": None,
    }
    assert (await client.post(URL, json=body(**fields))).status_code == 200


async def test_prompt_logprobs_are_given_when_asked(client: httpx.AsyncClient) -> None:
    answer = (await client.post(URL, json=body(prompt_logprobs=1))).json()
    first, second = answer["prompt_logprobs"][:2]
    assert first is None
    assert second[str(ord("s"))] == {"logprob": -1.0, "rank": 2, "decoded_token": "s"}
    assert second[str(ord("t"))]["decoded_token"] == "t"
