"""From the engine's tokens to text, stop strings, several completions and log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from parhelion.engine.intake import Intake
from parhelion.engine.messages import TokenLogprob, TokenOutput
from parhelion.engine.outputs import OutputProcessor
from parhelion.models.tokenizer import Tokenizer
from parhelion.types import RequestOutput, SamplingParams

from .requests import engine_info


class Front:
    """An output processor and the requests that were started in it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.processor = OutputProcessor(tokenizer)
        self._intake = Intake(tokenizer, engine_info(), seed=0)
        self._engine_ids: dict[str, str] = {}

    def start(self, name: str = "r", prompt: str = "ab", **params: Any) -> RequestOutput:
        tokenized, chosen = self._intake.tokenize(prompt), SamplingParams(**params)
        requests = self._intake.requests(name, tokenized.token_ids, chosen, priority=0)
        self._engine_ids |= {f"{name}/{index}": request.request_id for index, request in enumerate(requests)}
        return self.processor.add(name, tokenized, chosen, requests)

    def token(self, name: str, *values: Any) -> TokenOutput:
        """A token of the completion that tests call ``request/index``."""
        return TokenOutput(self._engine_ids.get(name, name), *values)

    def process(self, *tokens: TokenOutput) -> tuple[list[RequestOutput], list[str]]:
        """Requests with news, and completions to abort."""
        processed = self.processor.process(tokens)
        return processed.changed, self.names(processed.to_abort)

    def names(self, engine_ids: Sequence[str]) -> list[str]:
        """What tests call these completions."""
        names = {engine_id: name for name, engine_id in self._engine_ids.items()}
        return [names[engine_id] for engine_id in engine_ids]

    def take(self, name: str, text: str, **last: Any) -> tuple[list[str], list[str]]:
        """One step a byte of the text; ``last`` belongs to the last. Ids of requests with news, and to abort."""
        changed, aborted = [], []
        encoded = text.encode()
        for index, byte in enumerate(encoded):
            extra = last if index == len(encoded) - 1 else {}
            news, to_abort = self.process(msgspec.structs.replace(self.token(name, byte + 2), **extra))
            changed += [output.request_id for output in news]
            aborted += to_abort
        return changed, aborted


@pytest.fixture
def front(byte_tokenizer: Tokenizer) -> Front:
    return Front(byte_tokenizer)


def test_text_grows_with_the_tokens_until_the_engine_ends_it(front: Front) -> None:
    output = front.start()
    assert (output.prompt, output.prompt_token_ids, output.finished) == ("ab", [99, 100], False)
    assert front.take("r/0", "hel") == (["r"] * 3, [])
    assert (output.outputs[0].text, output.outputs[0].token_ids) == ("hel", [byte + 2 for byte in b"hel"])
    assert output.outputs[0].finish_reason is None
    assert front.take("r/0", "lo", finish_reason="length") == (["r"] * 2, [])
    assert (output.outputs[0].text, output.outputs[0].finish_reason, output.finished) == ("hello", "length", True)
    assert output.outputs[0].stop_reason is None
    assert front.processor.num_unfinished == 0


def test_a_stop_id_ends_with_its_id_as_the_reason_and_leaves_no_text(front: Front) -> None:
    output = front.start()
    front.take("r/0", "hi")
    assert front.process(front.token("r/0", 1, "stop", 1)) == ([output], [])
    assert (output.outputs[0].text, output.outputs[0].finish_reason, output.outputs[0].stop_reason) == ("hi", "stop", 1)


def test_a_stop_string_over_several_tokens_ends_the_text_and_asks_for_an_abort_once(front: Front) -> None:
    output = front.start(stop=["END", "never"])
    changed, aborted = front.take("r/0", "goEN")
    assert aborted == []
    assert output.outputs[0].text == "go", "what may become the stop string is held back"
    changed, aborted = front.take("r/0", "D")
    assert (changed, aborted) == (["r"], ["r/0"])
    assert (output.outputs[0].text, output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (
        "go",
        "stop",
        "END",
    )
    assert output.finished
    assert front.take("r/0", "late tokens in flight") == ([], [])
    assert output.outputs[0].text == "go"
    assert len(output.outputs[0].token_ids) == 5


def test_a_stop_string_that_the_last_token_completes_needs_no_abort(front: Front) -> None:
    output = front.start(stop=["."], include_stop_str_in_output=True)
    assert front.take("r/0", "Yes.", finish_reason="length")[1] == []
    assert (output.outputs[0].text, output.outputs[0].finish_reason, output.outputs[0].stop_reason) == (
        "Yes.",
        "stop",
        ".",
    )


def test_what_was_held_back_is_shown_when_the_engine_ends_the_text(front: Front) -> None:
    output = front.start(stop=["END"])
    front.take("r/0", "goEN", finish_reason="length")
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("goEN", "length")


def test_a_character_of_several_tokens_shows_whole_or_not_at_all(front: Front) -> None:
    output = front.start()
    first, *rest = "é".encode()
    front.process(front.token("r/0", first + 2))
    assert output.outputs[0].text == ""
    front.process(front.token("r/0", rest[0] + 2))
    assert output.outputs[0].text == "é"


def test_a_request_of_several_completions_ends_with_the_last_of_them(front: Front) -> None:
    output = front.start(n=3, stop=["!"])
    step = [front.token(f"r/{index}", ord("a") + index + 2) for index in (2, 0, 1)]
    assert front.process(*step) == ([output], []), "news of one request is told once a step"
    assert [completion.text for completion in output.outputs] == ["a", "b", "c"]
    assert front.take("r/1", "!")[1] == ["r/1"]
    assert not output.finished
    front.take("r/0", "x", finish_reason="length")
    assert not output.finished
    front.take("r/2", "y", finish_reason="length")
    assert output.finished
    assert [(c.index, c.text, c.finish_reason) for c in output.outputs] == [
        (0, "ax", "length"),
        (1, "b", "stop"),
        (2, "cy", "length"),
    ]


def test_requests_side_by_side_do_not_mix(front: Front) -> None:
    first, second = front.start("one"), front.start("two")
    tokens = [front.token("two/0", 70), front.token("unknown/0", 71), front.token("one/0", 72)]
    assert front.process(*tokens) == ([second, first], [])
    assert (first.outputs[0].token_ids, second.outputs[0].token_ids) == ([72], [70])


def test_forgetting_names_what_is_unfinished_and_ignores_its_late_tokens(front: Front) -> None:
    output = front.start(n=3)
    front.take("r/1", "x", finish_reason="length")
    assert front.names(front.processor.forget(output)) == ["r/0", "r/2"]
    assert front.processor.forget(output) == []
    assert front.processor.num_unfinished == 0
    assert front.take("r/0", "late") == ([], [])
    assert output.outputs[0].text == ""


def test_what_was_lost_begins_again_from_nothing_with_the_same_engine_requests(front: Front) -> None:
    output, other = front.start(n=2, logprobs=0), front.start("other")
    front.take("r/0", "q", logprob=TokenLogprob(token_id("q"), -5.0, 7, [], []))
    front.take("r/1", "x", finish_reason="length", num_cached_tokens=1)
    seen = output.outputs
    names = [front.token(name, 0).request_id for name in ("r/0", "unknown")]
    lost = front.processor.lost(names, others_serve=True)
    assert (lost.again, lost.given_up) == ([output], [])
    assert front.names([request.request_id for request in lost.to_send]) == ["r/0", "r/1"]
    assert [(c.text, c.token_ids, c.logprobs, c.finish_reason) for c in output.outputs] == [("", [], [], None)] * 2
    assert (output.num_cached_tokens, output.finished) == (0, False)
    assert [completion.text for completion in seen] == ["q", "x"], "who has the old ones keeps them"
    front.take("r/0", "ab", finish_reason="length")
    front.take("r/1", "c", finish_reason="length")
    assert ([completion.text for completion in output.outputs], output.finished) == (["ab", "c"], True)
    assert other.outputs[0].text == ""


@pytest.mark.parametrize("reason", ["seen", "nobody serves", "twice"])
def test_what_was_seen_or_is_lost_twice_or_has_nowhere_to_go_is_given_up(front: Front, reason: str) -> None:
    output = front.start()
    name = front.token("r/0", 0).request_id
    if reason == "seen":
        front.processor.pin(output)
    if reason == "twice":
        assert front.processor.lost([name], others_serve=True).again == [output]
    lost = front.processor.lost([name], others_serve=reason != "nobody serves")
    assert (lost.again, lost.to_send, lost.given_up) == ([], [], [output])


def token_id(character: str) -> int:
    return ord(character) + 2


def test_logprobs_hold_the_chosen_token_first_then_the_likeliest_with_their_text_and_rank(front: Front) -> None:
    output = front.start(logprobs=2)
    unlikely = TokenLogprob(token_id("q"), -5.0, 7, [token_id("a"), token_id("b")], [-0.5, -1.5])
    likely = TokenLogprob(token_id("a"), -0.25, 1, [token_id("a"), 1], [-0.25, -2.0])
    front.take("r/0", "q", logprob=unlikely)
    front.take("r/0", "a", logprob=likely)
    completion = output.outputs[0]
    assert completion.logprobs is not None
    seen = [
        [(key, item.logprob, item.rank, item.decoded_token) for key, item in position.items()]
        for position in completion.logprobs
    ]
    assert seen == [
        [
            (token_id("q"), -5.0, 7, "q"),
            (token_id("a"), -0.5, 1, "a"),
            (token_id("b"), -1.5, 2, "b"),
        ],
        [(token_id("a"), -0.25, 1, "a"), (1, -2.0, 2, "<|end|>")],
    ]
    assert completion.cumulative_logprob == -5.25


def test_without_logprobs_asked_for_there_are_none(front: Front) -> None:
    output = front.start()
    front.take("r/0", "q")
    assert (output.outputs[0].logprobs, output.outputs[0].cumulative_logprob) == (None, None)


def test_prompt_logprobs_come_once_and_the_first_position_has_none(front: Front) -> None:
    output = front.start(prompt_logprobs=1, n=2)
    item = TokenLogprob(token_id("b"), -1.0, 1, [token_id("b")], [-1.0])
    front.take("r/0", "x", prompt_logprobs=[item], num_cached_tokens=0)
    first = output.prompt_logprobs
    front.take("r/1", "y", prompt_logprobs=[item], num_cached_tokens=1)
    assert output.prompt_logprobs is first
    assert first is not None
    assert first[0] is None
    assert first[1] is not None
    assert list(first[1]) == [token_id("b")]
    assert output.num_cached_tokens == 1


def test_a_prompt_of_one_token_has_one_entry_that_says_nothing(front: Front) -> None:
    assert front.start("wanted", "a", prompt_logprobs=1).prompt_logprobs == [None]
    assert front.start("not wanted", "a").prompt_logprobs is None


def test_times_mark_arrival_first_and_last_token(front: Front) -> None:
    output = front.start()
    assert output.times is not None
    assert (output.times.first_token, output.times.last_token) == (None, None)
    front.take("r/0", "a")
    first = output.times.first_token
    front.take("r/0", "b")
    assert output.times.first_token == first
    assert first is not None
    assert output.times.last_token is not None
    assert output.times.arrival <= first <= output.times.last_token
