"""The conversation loop, with a model that is a list of answers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from parhelion.cli.chat import Message, converse, print_answer
from parhelion.types import CompletionOutput, RequestOutput


def growing(
    *texts: str, fail: type[BaseException] | None = None, closed: list[bool] | None = None
) -> Iterator[RequestOutput]:
    try:
        for text in texts:
            yield RequestOutput("r", None, [], [CompletionOutput(0, text)], finished=False)
        if fail is not None:
            raise fail
    finally:
        if closed is not None:
            closed.append(True)


def test_an_answer_is_printed_once_though_outputs_are_cumulative(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_answer(growing("He", "Hello", "Hello you")) == "Hello you"
    assert capsys.readouterr().out == "Hello you\n"


def test_interrupt_stops_the_answer_only_and_keeps_what_came(capsys: pytest.CaptureFixture[str]) -> None:
    closed: list[bool] = []
    assert print_answer(growing("Hel", fail=KeyboardInterrupt, closed=closed)) == "Hel"
    assert "[stopped]" in capsys.readouterr().out
    assert closed == [True]


def test_conversation_remembers_resets_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["one", "two", "/reset", "three", "/nonsense", "", "/exit", "never read"])
    monkeypatch.setattr("builtins.input", lambda _prompt: next(typed))
    asked: list[list[str]] = []

    def answer(messages: list[Message]) -> Iterator[RequestOutput]:
        asked.append([f"{message['role'][0]}:{message['content']}" for message in messages])
        return growing("ok")

    converse(answer, system="be brief")
    start = "s:be brief"
    assert asked == [[start, "u:one"], [start, "u:one", "a:ok", "u:two"], [start, "u:three"]]
    assert next(typed) == "never read"


def test_end_of_input_ends_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(_prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ended)
    converse(lambda _messages: growing("never"), system=None)
