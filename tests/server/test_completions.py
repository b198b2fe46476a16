"""``/v1/completions``, ``/tokenize`` and ``/detokenize``."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .events import chunks_of
from .fake_engine import BOS, FakeEngine, recited

pytestmark = pytest.mark.anyio
URL = "/v1/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "prompt": "Once", **fields}


async def test_answer_has_openai_shape_and_sixteen_tokens_by_default(client: httpx.AsyncClient) -> None:
    answer = (await client.post(URL, json=body())).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    (choice,) = answer["choices"]
    assert choice["text"] == recited(16)
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == 5
    assert answer["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[BOS, 97, 98]]),
        (["a", "b"], [[BOS, 97], [BOS, 98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
async def test_every_kind_of_prompt(
    client: httpx.AsyncClient, engine: FakeEngine, prompt: Any, expected: list[list[int]]
) -> None:
    answer = (await client.post(URL, json=body(prompt=prompt))).json()
    assert list(engine.prompts.values()) == expected
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))


@pytest.mark.parametrize("stream", [False, True])
async def test_only_an_answer_in_one_piece_may_begin_again_unseen(
    client: httpx.AsyncClient, engine: FakeEngine, stream: bool
) -> None:
    await client.post(URL, json=body(prompt=["a", "b"], stream=stream))
    assert list(engine.whole.values()) == [not stream] * 2


async def test_special_tokens_may_be_left_out(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    await client.post(URL, json=body(add_special_tokens=False))
    assert list(engine.prompts.values()) == [list(b"Once")]


@pytest.mark.parametrize(
    "prompt", [[], [[]], "", [""], ["a", 1], [1, [2]], [258], [-1], [[1], [10**30]], [1.5], [True], [None], {}, None]
)
async def test_unusable_prompts_are_refused(client: httpx.AsyncClient, prompt: Any) -> None:
    response = await client.post(URL, json=body(prompt=prompt, add_special_tokens=False))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"].startswith("prompt")


async def test_choices_of_prompt_and_n_are_numbered_in_order(client: httpx.AsyncClient) -> None:
    answer = (await client.post(URL, json=body(prompt=["a", "b"], n=2))).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts[0] == texts[2] != texts[1] == texts[3]
    assert answer["usage"]["prompt_tokens"] == 4
    chunks = chunks_of((await client.post(URL, json=body(prompt=["a", "b"], n=2, stream=True))).text)
    streamed = ["", "", "", ""]
    for chunk in chunks:
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == texts
    assert sum(chunk["choices"][0]["finish_reason"] is not None for chunk in chunks) == 4


@pytest.mark.parametrize("prompt", ["Once", list(b"Once")])
@pytest.mark.parametrize("streamed", [False, True])
async def test_echo_puts_the_prompt_first_once(client: httpx.AsyncClient, prompt: Any, streamed: bool) -> None:
    response = await client.post(URL, json=body(prompt=prompt, echo=True, max_tokens=4, stream=streamed))
    parts = chunks_of(response.text) if streamed else [response.json()]
    assert "".join(part["choices"][0]["text"] for part in parts) == "OnceGrü"


@pytest.mark.parametrize("streamed", [False, True])
async def test_logprobs_are_parallel_lists_whose_offsets_fit_the_text(
    client: httpx.AsyncClient, streamed: bool
) -> None:
    response = await client.post(URL, json=body(logprobs=2, echo=True, max_tokens=12, stream=streamed))
    parts = chunks_of(response.text) if streamed else [response.json()]
    text = "".join(part["choices"][0]["text"] for part in parts)
    pieces = [part["choices"][0]["logprobs"] for part in parts]
    tokens, offsets, logprobs, top = (
        [one for piece in pieces for one in piece[name]]
        for name in ("tokens", "text_offset", "token_logprobs", "top_logprobs")
    )
    assert len(tokens) == len(offsets) == len(logprobs) == len(top) == 5 + 12
    assert tokens[:5] == ["<s>", "O", "n", "c", "e"]
    assert (logprobs[0], top[0]) == (None, None)
    assert logprobs[1] == -1.0
    assert top[1] == {"P": -0.5, "O": -1.0}
    whole_characters = [(token, offset) for token, offset in zip(tokens[1:], offsets[1:], strict=True) if token != "�"]
    assert all(text[offset : offset + 1] == token for token, offset in whole_characters)


async def test_logprobs_of_zero_have_no_alternatives(client: httpx.AsyncClient) -> None:
    logprobs = (await client.post(URL, json=body(logprobs=0))).json()["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] is None
    assert len(logprobs["tokens"]) == 16


async def test_prompt_logprobs_come_with_each_choice(client: httpx.AsyncClient) -> None:
    (choice,) = (await client.post(URL, json=body(prompt_logprobs=0))).json()["choices"]
    assert [one and list(one) for one in choice["prompt_logprobs"]] == [None, ["79"], ["110"], ["99"], ["101"]]


async def test_stream_ends_with_usage_over_all_prompts(client: httpx.AsyncClient) -> None:
    asked = body(prompt=["a", "bc"], stream=True, stream_options={"include_usage": True})
    last = chunks_of((await client.post(URL, json=asked)).text)[-1]
    assert last["choices"] == []
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (5, 32)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**25}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"stop_token_ids": [999]}, "stop_token_ids"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"seed": 2**63}, "seed"),
        ({"priority": 2**40}, "priority"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"grammar": "x", "zebra": 1}, "grammar"),
    ],
)
async def test_unusable_field_is_named(client: httpx.AsyncClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post(URL, json=body(**fields))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert all(name in error["message"] for name in fields)


async def test_the_default_length_is_cut_to_what_fits(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.max_model_len = 10
    answer = (await client.post(URL, json=body(prompt="seven.."))).json()
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (8, 2)


async def test_top_p_of_zero_keeps_the_likeliest_token(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    assert (await client.post(URL, json=body(top_p=0))).status_code == 200
    (params,) = engine.params.values()
    assert 0 < params.top_p < 1 / 250_000  # the likeliest of a vocabulary of so many is no less likely


async def test_max_completion_tokens_is_the_newer_name(client: httpx.AsyncClient) -> None:
    answer = (await client.post(URL, json=body(max_tokens=9, max_completion_tokens=3))).json()
    assert answer["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_prompt_is_scored_without_a_token_more(client: httpx.AsyncClient, streamed: bool) -> None:
    asked = body(max_tokens=0, echo=True, logprobs=1, n=2, stream=streamed)
    if streamed:
        response = await client.post(URL, json={**asked, "stream_options": {"include_usage": True}})
        *chunks, last = chunks_of(response.text)
        choices, usage = [chunk["choices"][0] for chunk in chunks], last["usage"]
    else:
        answer = (await client.post(URL, json=asked)).json()
        choices, usage = answer["choices"], answer["usage"]
    assert [choice["index"] for choice in choices] == [0, 1]
    for choice in choices:
        assert (choice["text"], choice["finish_reason"]) == ("Once", "length")
        assert choice["logprobs"]["tokens"] == ["<s>", "O", "n", "c", "e"]
        assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.0, -1.0, -1.0]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 0)


async def test_too_long_a_prompt_says_by_how_much(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.max_model_len = 10
    error = (await client.post(URL, json=body(prompt="x" * 30))).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "31" in error["message"]
    assert "10" in error["message"]
    error = (await client.post(URL, json=body(max_tokens=6))).json()["error"]
    assert (error["param"], error["code"]) == ("max_tokens", "context_length_exceeded")
    assert (await client.post(URL, json=body(max_tokens=5))).status_code == 200


async def test_tokenize_and_detokenize_are_inverse(client: httpx.AsyncClient) -> None:
    asked = {"prompt": "Grüße", "add_special_tokens": False, "return_token_strs": True}
    answer = (await client.post("/tokenize", json=asked)).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"]) == 7
    assert answer["max_model_len"] == 4096
    assert (await client.post("/detokenize", json={"tokens": answer["tokens"]})).json() == {"prompt": "Grüße"}


async def test_long_texts_are_tokenized_as_short_ones_are(client: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.max_model_len = 1 << 16
    text = "Grüße " * 3000
    asked = {"prompt": text, "add_special_tokens": False, "return_token_strs": True}
    answer = (await client.post("/tokenize", json=asked)).json()
    assert answer["tokens"] == list(text.encode())
    assert len(answer["token_strs"]) == answer["count"]
    assert (await client.post("/detokenize", json={"tokens": answer["tokens"]})).json() == {"prompt": text}
    scored = body(prompt=[text, "b"], max_tokens=0, echo=True, logprobs=2)
    first, second = (await client.post(URL, json=scored)).json()["choices"]
    assert (first["text"], second["text"]) == (text, "b")
    assert len(first["logprobs"]["tokens"]) == answer["count"] + 1


async def test_tokenize_takes_messages(client: httpx.AsyncClient) -> None:
    answer = (await client.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]})).json()
    assert bytes(answer["tokens"]).decode() == "user: Hi\nassistant:"


@pytest.mark.parametrize("asked", [{}, {"prompt": "a", "messages": []}])
async def test_tokenize_needs_exactly_one_input(client: httpx.AsyncClient, asked: dict[str, Any]) -> None:
    assert (await client.post("/tokenize", json=asked)).status_code == 400


async def test_detokenize_refuses_unknown_ids(client: httpx.AsyncClient) -> None:
    response = await client.post("/detokenize", json={"tokens": [1, 258]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "tokens")
