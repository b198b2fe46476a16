"""Requests are checked before the engine sees them, and one user's request becomes one engine request a completion."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from parhelion.engine.intake import Intake
from parhelion.engine.messages import AddRequest
from parhelion.errors import InvalidRequestError
from parhelion.models.tokenizer import Tokenizer
from parhelion.types import SamplingParams

from .requests import engine_info


@pytest.fixture
def intake(byte_tokenizer: Tokenizer) -> Intake:
    return Intake(byte_tokenizer, engine_info(), seed=0)


def one(intake: Intake, prompt: list[int] | None = None, **params: Any) -> AddRequest:
    (request,) = intake.requests("r", prompt or [5, 6, 7], SamplingParams(**params), priority=0)
    return request


def refusal(intake: Intake, prompt: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as raised:
        intake.tokenize(prompt)
    assert raised.value.param == "prompt"
    return raised.value


def test_text_is_tokenized_and_kept(intake: Intake) -> None:
    prompt = intake.tokenize("hé")
    assert (prompt.text, prompt.token_ids) == ("hé", [byte + 2 for byte in "hé".encode()])


def test_token_ids_are_taken_as_they_are_and_copied(intake: Intake) -> None:
    ids = (0, 257, 5)
    assert intake.tokenize({"prompt_token_ids": ids}).token_ids == [0, 257, 5]
    assert intake.tokenize({"prompt_token_ids": ids}).text is None
    mine = [5, 6]
    intake.tokenize({"prompt_token_ids": mine}).token_ids.append(9)
    assert mine == [5, 6]


@pytest.mark.parametrize("prompt", ["", {"prompt_token_ids": []}])
def test_an_empty_prompt_is_refused(intake: Intake, prompt: Any) -> None:
    assert "empty" in str(refusal(intake, prompt))


@pytest.mark.parametrize("prompt", ["x" * 32, {"prompt_token_ids": [5] * 100}])
def test_a_prompt_that_leaves_no_room_for_output_is_refused_with_its_length_and_the_limit(
    intake: Intake, prompt: Any
) -> None:
    error = refusal(intake, prompt)
    assert error.code == "context_length_exceeded"
    assert "at most 32" in str(error)
    assert len(intake.tokenize("x" * 31).token_ids) == 31


@pytest.mark.parametrize("token_id", [-1, 258, 1 << 40])
def test_ids_outside_the_vocabulary_are_refused_with_its_bounds(intake: Intake, token_id: int) -> None:
    error = refusal(intake, {"prompt_token_ids": [5, token_id]})
    assert f"token {token_id};" in str(error)
    assert "0 to 257" in str(error)


@pytest.mark.parametrize("token_id", [True, 5.0, "5", None])
def test_ids_that_are_no_integers_are_refused(intake: Intake, token_id: Any) -> None:
    assert "integer token ids" in str(refusal(intake, {"prompt_token_ids": [5, token_id]}))


def test_text_with_a_token_that_the_model_has_no_embedding_for_is_refused(intake: Intake) -> None:
    assert "token 258;" in str(refusal(intake, "a<|beyond|>b"))


@pytest.mark.parametrize("prompt", [None, 5, ["a"], {"text": "a"}])
def test_what_is_no_prompt_is_refused_by_its_type(intake: Intake, prompt: Any) -> None:
    assert type(prompt).__name__ in str(refusal(intake, prompt))


def test_each_completion_is_a_request_with_its_own_name_and_seed(intake: Intake) -> None:
    requests = intake.requests("r", [5, 6], SamplingParams(n=3, seed=100), priority=4)
    assert [request.seed for request in requests] == [100, 101, 102]
    assert all(request.prompt_token_ids == [5, 6] and request.priority == 4 for request in requests)
    assert len({request.arrival for request in requests}) == 1


def test_names_of_engine_requests_never_come_twice_even_if_the_users_do(intake: Intake) -> None:
    several = [intake.requests("r", [5, 6], SamplingParams(n=2), priority=0) for _ in range(5)]
    assert len({request.request_id for requests in several for request in requests}) == 10


def test_completion_i_of_a_seed_is_the_only_completion_of_seed_plus_i(intake: Intake) -> None:
    for seed in (0, -5, (1 << 63) - 1):
        several = intake.requests("r", [5], SamplingParams(n=3, seed=seed), priority=0)
        if seed + 2 < 1 << 63:
            assert [one(intake, [5], seed=seed + index).seed for index in range(3)] == [r.seed for r in several]
        assert all(0 <= request.seed < 1 << 64 for request in several)


def test_seeds_that_nobody_gave_differ_but_repeat_with_the_engines_own_seed(byte_tokenizer: Tokenizer) -> None:
    first, second, third = (Intake(byte_tokenizer, engine_info(), seed=seed) for seed in (1, 1, 2))
    drawn = [one(first).seed for _ in range(20)]
    assert len(set(drawn)) == 20
    assert [one(second).seed for _ in range(20)] == drawn
    assert one(third).seed not in drawn


@pytest.mark.parametrize(("asked", "given"), [(None, 29), (1, 1), (29, 29), (30, 29), (1000, 29)])
def test_max_tokens_is_cut_to_the_room_that_the_prompt_leaves(intake: Intake, asked: int | None, given: int) -> None:
    assert one(intake, [5, 6, 7], max_tokens=asked).max_tokens == given


def test_end_of_sequence_ids_of_model_and_tokenizer_stop_beside_those_asked_for(byte_tokenizer: Tokenizer) -> None:
    intake = Intake(byte_tokenizer, engine_info(eos_token_ids=[1, 9]), seed=0)
    assert one(intake).stop_token_ids == [1, 9]
    assert one(intake, stop_token_ids=[20, 9]).stop_token_ids == [1, 9, 20]


def test_ignore_eos_leaves_only_the_stop_ids_asked_for(intake: Intake) -> None:
    assert one(intake, ignore_eos=True).stop_token_ids == []
    assert one(intake, ignore_eos=True, stop_token_ids=[20, 1]).stop_token_ids == [1, 20]


def test_end_of_sequence_ids_that_the_model_cannot_sample_are_left_out(byte_tokenizer: Tokenizer) -> None:
    small = Intake(byte_tokenizer, engine_info(vocab_size=100, eos_token_ids=[1, 99, 100]), seed=0)
    assert one(small).stop_token_ids == [1, 99]


@pytest.mark.parametrize(
    ("param", "value"),
    [("logit_bias", {258: 1.0}), ("logit_bias", {-1: 1.0}), ("stop_token_ids", [300]), ("stop_token_ids", [True])],
)
def test_parameters_that_name_tokens_the_model_does_not_have_are_refused(
    intake: Intake, param: str, value: Any
) -> None:
    with pytest.raises(InvalidRequestError, match=param) as raised:
        one(intake, **{param: value})
    assert raised.value.param == param


def test_numbers_of_numpy_can_be_sent_to_an_engine_in_another_process(intake: Intake) -> None:
    half = np.float64(0.5)
    request = one(intake, seed=1, temperature=half, top_p=half, presence_penalty=half, logit_bias={5: half})
    received = msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=AddRequest).params
    assert (received.temperature, received.top_p, received.presence_penalty) == (0.5, 0.5, 0.5)
    assert received.logit_bias == {5: 0.5}
