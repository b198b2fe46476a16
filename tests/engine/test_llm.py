"""The offline API around an engine that computes nothing."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import pytest

from parhelion.engine import llm
from parhelion.engine.llm import LLM
from parhelion.models.tokenizer import Tokenizer
from parhelion.types import RequestOutput, SamplingParams

from .noop import NoOpExecutor, make_core
from .requests import engine_info

PROMPT = {"prompt_token_ids": [5, 6, 7]}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, byte_tokenizer: Tokenizer) -> LLM:
    monkeypatch.setattr(llm, "resolve_model", Path)
    monkeypatch.setattr(llm, "tokenizer_loader", lambda config: lambda path: byte_tokenizer)
    monkeypatch.setattr(llm, "_open", lambda *_: (make_core(NoOpExecutor()), engine_info()))
    return LLM("nothing")


def lengths(outputs: list[RequestOutput]) -> list[tuple[int, bool]]:
    return [(len(output.outputs[0].token_ids), output.finished) for output in outputs]


def test_a_stream_grows_to_its_end(offline: LLM) -> None:
    with offline:
        # Tokens are added in place: each output is looked at when it comes.
        seen = [lengths([output])[0] for output in offline.stream(PROMPT, SamplingParams(max_tokens=3))]
    assert seen == [(1, False), (2, False), (3, True)]


def test_a_stream_tells_its_end_even_if_something_else_advanced_it_there(offline: LLM) -> None:
    with offline:
        stream = offline.stream(PROMPT, SamplingParams(max_tokens=3))
        first = lengths([next(stream)])
        [other] = offline.generate(PROMPT, SamplingParams(max_tokens=8))
        assert (first, lengths([other])) == ([(1, False)], [(8, True)])
        assert lengths(list(stream)) == [(3, True)]


def test_streams_side_by_side_all_tell_their_ends(offline: LLM) -> None:
    with offline:
        streams = [offline.stream(PROMPT, SamplingParams(max_tokens=count)) for count in (3, 3, 5)]
        rounds = [
            [lengths([output])[0] for output in outputs if output is not None] for outputs in zip_longest(*streams)
        ]
        assert sorted(each for outputs in rounds for each in outputs if each[1]) == [(3, True), (3, True), (5, True)]


def test_what_is_left_of_a_closed_stream_is_aborted(offline: LLM) -> None:
    with offline:
        stream = offline.stream(PROMPT, SamplingParams(max_tokens=20))
        next(stream)
        stream.close()
        assert offline.stats().num_running == 0
        assert offline.stats().num_blocks_in_use == 0
