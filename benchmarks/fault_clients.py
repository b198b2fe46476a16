"""Clients of a server that is about to lose a process: what each asks, what it gets, and whether the text is right."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

READ_TIMEOUT_S = 120.0
"""Beyond any bar, so that a request that hangs is seen to hang."""


@dataclass(frozen=True)
class Question:
    """A greedy request with a known answer.

    Attributes:
        text: what it shall say in full.
    """

    prompt: str
    max_tokens: int
    text: str


@dataclass(frozen=True)
class Answer:
    """What a client got.

    Attributes:
        outcome: ``200``, another status, ``error in stream``, or ``connection closed``.
        streamed: it was asked for as a stream.
        began, ended: on the monotonic clock.
        problem: what is wrong with its text, if anything is.
    """

    outcome: str
    streamed: bool
    began: float
    ended: float
    problem: str | None


@dataclass
class Load:
    """Clients that ask again and again, each for one question, half of them for streams.

    Attributes:
        answers: all so far.
        under_way: when each unanswered request began, by the client's number.
        streaming: clients whose streams have begun.
    """

    url: str
    model: str
    questions: list[Question]
    answers: list[Answer] = field(default_factory=list)
    under_way: dict[int, float] = field(default_factory=dict)
    streaming: set[int] = field(default_factory=set)
    _killed_at: float | None = None

    async def run(self, number: int) -> None:
        """One client: it ends with the answer of the first request that it began after the kill."""
        streamed = self._wants_stream(number)
        async with httpx.AsyncClient(base_url=self.url, timeout=READ_TIMEOUT_S) as client:
            while True:
                began = self.under_way[number] = time.monotonic()
                outcome, text = await self._ask(client, number)
                del self.under_way[number]
                problem = problem_of(outcome, text, self.questions[number].text)
                self.answers.append(Answer(outcome, streamed, began, time.monotonic(), problem))
                if self._killed_at is not None and began > self._killed_at:
                    return

    def stop_after_one_more(self) -> float:
        """Now is the kill; returns the moment."""
        self._killed_at = time.monotonic()
        return self._killed_at

    @property
    def has_begun(self) -> bool:
        """Something has come of every stream."""
        return all(number in self.streaming for number in range(len(self.questions)) if self._wants_stream(number))

    @staticmethod
    def _wants_stream(number: int) -> bool:
        """Two of four: where two replicas take requests in turns, each has streams and others."""
        return number % 4 < 2

    async def _ask(self, client: httpx.AsyncClient, number: int) -> tuple[str, str]:
        """The outcome and the text that came."""
        question = self.questions[number]
        body = request_body(self.model, question.prompt, question.max_tokens)
        pieces: list[str] = []
        try:
            if not self._wants_stream(number):
                answer = await client.post("/v1/completions", json=body)
                return str(answer.status_code), _text_of(answer.json()) if answer.status_code == 200 else ""
            async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as events:
                if events.status_code != 200:
                    await events.aread()
                    return str(events.status_code), ""
                return await self._read(events, pieces, number), "".join(pieces)
        except httpx.TransportError:
            return "connection closed", "".join(pieces)

    async def _read(self, events: httpx.Response, pieces: list[str], number: int) -> str:
        async for line in events.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                return "200"
            self.streaming.add(number)
            message = json.loads(line.removeprefix("data: "))
            if "error" in message:
                return "error in stream"
            pieces.append(_text_of(message))
        return "connection closed"


def request_body(model: str, prompt: str, max_tokens: int) -> dict[str, object]:
    """A greedy completion of exactly so many tokens."""
    return {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}


def _text_of(message: Mapping[str, list[dict[str, str]]]) -> str:
    return "".join(choice["text"] for choice in message["choices"])


def problem_of(outcome: str, text: str, whole: str) -> str | None:
    """What is wrong with a text: a finished one is the whole one, a cut one a prefix of it."""
    if outcome == "200":
        return None if text == whole else f"{_shown(text)} is not {_shown(whole)}"
    return None if whole.startswith(text) else f"{_shown(text)} does not begin {_shown(whole)}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


async def ask_all(url: str, model: str, questions: list[Question]) -> list[str]:
    """Ask everything at once, in one piece each; returns what is wrong with the answers."""

    async def ask(client: httpx.AsyncClient, question: Question) -> str | None:
        body = request_body(model, question.prompt, question.max_tokens)
        answer = await client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            return f"status {answer.status_code}: {answer.text[:200]}"
        return problem_of("200", _text_of(answer.json()), question.text)

    async with httpx.AsyncClient(base_url=url, timeout=READ_TIMEOUT_S) as client:
        found = await asyncio.gather(*(ask(client, question) for question in questions))
    return [problem for problem in found if problem is not None]
