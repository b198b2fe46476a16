"""Guesses of any quality change nothing: not the tokens, whatever they are sampled with, and nothing around them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import pytest

from parhelion import LLM, RequestOutput, SamplingParams
from parhelion.engine.drafts import choice as draft_choice
from parhelion.errors import ConfigError
from tests.e2e.mixed_requests import PARAMS, PROMPTS, Tokens, tokens_of


class Prophet:
    """Knows the texts to come, and is wrong about one token in so many.

    Attributes:
        texts: whole ones, prompts included.
        wrong: one in so many; 0 is never, 1 always.
    """

    texts: Sequence[list[int]] = ()
    wrong = 3

    def __init__(self) -> None:
        self._known: dict[str, list[int]] = {}

    def start(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._known[request_id] = list(token_ids)

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._known[request_id] += token_ids

    def propose(self, request_id: str, count: int) -> list[int]:
        known = self._known[request_id]
        text = next((text for text in self.texts if text[: len(known)] == known), known)
        guesses = text[len(known) : len(known) + count]
        return [self._told(token, len(known) + place) for place, token in enumerate(guesses)]

    def forget(self, request_id: str) -> None:
        self._known.pop(request_id, None)

    def _told(self, token: int, position: int) -> int:
        is_wrong = self.wrong and zlib.crc32(bytes([position % 256])) % self.wrong == 0
        return (token + 1) % 300 if is_wrong else token


@pytest.fixture(autouse=True)
def _prophecies(alone_outputs: list[RequestOutput], monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses are a prophet's, who knows what every request says by itself."""
    texts = [[*result.prompt_token_ids, *output.token_ids] for result in alone_outputs for output in result.outputs]
    monkeypatch.setattr(Prophet, "texts", texts)
    monkeypatch.setattr(draft_choice, "NgramProposer", Prophet)


@pytest.mark.parametrize("wrong", [0, 2, 3, 8, 1])
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="one batch"),
        pytest.param({"block_size": 1, "num_speculative_tokens": 9}, id="blocks of one token"),
        pytest.param({"max_num_batched_tokens": 13, "max_num_seqs": 6}, id="beside chunks of prompts"),
        pytest.param({"max_num_seqs": 1, "num_speculative_tokens": 1}, id="one at a time, one guess"),
        pytest.param({"speculate": "auto"}, id="as far as they pay"),
    ],
)
def test_guesses_change_no_token(
    options: dict[str, int],
    wrong: int,
    alone: list[Tokens],
    make_llm: Callable[..., LLM],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Prophet, "wrong", wrong)
    llm = make_llm(**{"speculate": "ngram"} | options)
    for _ in range(2):
        assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    stats = llm.stats()
    accepted, guessed = stats.accepted_tokens_total, stats.guessed_tokens_total
    if wrong == 1:
        assert accepted == 0
    elif wrong == 0:
        assert accepted == guessed > 0
        assert stats.steps_total < stats.generation_tokens_total
    elif "speculate" not in options:
        assert 0 < accepted < guessed


def test_a_way_that_does_not_exist_is_refused_before_anything_is_loaded(make_llm: Callable[..., LLM]) -> None:
    with pytest.raises(ConfigError, match=r"speculate is 'magic'; it must be one of off, auto, ngram, draft"):
        make_llm(speculate="magic")


def test_preemption_under_guesses_changes_nothing(alone: list[Tokens], make_llm: Callable[..., LLM]) -> None:
    block_bytes = 2 * 3 * 2 * 16 * 4 * 4
    llm = make_llm(speculate="ngram", block_size=4, kv_cache_memory=80 * block_bytes)
    for _ in range(3):
        assert tokens_of(llm.generate(PROMPTS, PARAMS)) == alone
    stats = llm.stats()
    assert stats.preemptions_total > 0
    assert stats.accepted_tokens_total > 0
    assert stats.prefix_cache_hit_tokens_total > 0


def test_log_probabilities_stop_strings_and_streams_are_the_same(make_llm: Callable[..., LLM]) -> None:
    wanted = SamplingParams(temperature=0, max_tokens=40, logprobs=2, prompt_logprobs=1, ignore_eos=True)
    plain, guessing = make_llm(overlap=False), make_llm(speculate="ngram")
    [theirs], [ours] = (llm.generate(PROMPTS[0], wanted) for llm in (plain, guessing))
    assert ours.outputs[0].token_ids == theirs.outputs[0].token_ids
    assert ours.outputs[0].logprobs is not None
    assert theirs.outputs[0].logprobs is not None
    for one, other in zip(ours.outputs[0].logprobs, theirs.outputs[0].logprobs, strict=True):
        assert list(one) == list(other)
        assert [each.logprob for each in one.values()] == pytest.approx(
            [each.logprob for each in other.values()], abs=1e-4
        )
    text = theirs.outputs[0].text
    for start in range(3, len(text) - 4, 5):
        stops = SamplingParams(temperature=0, max_tokens=40, stop=(text[start : start + 3],), ignore_eos=True)
        [theirs], [ours] = (llm.generate(PROMPTS[0], stops) for llm in (plain, guessing))
        assert ours.outputs[0].text == theirs.outputs[0].text
        assert ours.outputs[0].stop_reason == theirs.outputs[0].stop_reason
        *_, last = guessing.stream(PROMPTS[0], stops)
        assert last.outputs[0].text == theirs.outputs[0].text
    assert guessing.stats().accepted_tokens_total > 0
