"""``POST /v1/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from parhelion.errors import InvalidRequestError
from parhelion.server.connection import Connection
from parhelion.server.context import ServingContext
from parhelion.server.logprobs import CompletionLogprobsWriter, joined, prompt_logprobs
from parhelion.server.outputs import MergedOutputs
from parhelion.server.params import TokenLimits, asked_max_tokens, includes_usage, priority_of, sampling_params
from parhelion.server.prompts import check_prompt, encode, room_for_output, split_prompts
from parhelion.server.protocol import CompletionRequest
from parhelion.server.responses import Completion, CompletionChoice, CompletionLogprobs, PromptLogprobs, Usage
from parhelion.server.running import Job, serve_job
from parhelion.server.streaming import event
from parhelion.server.usage import usage_of
from parhelion.types import CompletionOutput, RequestOutput

DEFAULT_MAX_TOKENS = 16
"""OpenAI's, for this endpoint."""


async def answer_completion(context: ServingContext, body: CompletionRequest, connection: Connection) -> None:
    """Check the body, run its prompts and answer."""
    context.check_model(body.model)
    _check_supported(body)
    given = split_prompts(body.prompt)

    async def prepare() -> Job:
        return await _prepare(context, body, given)

    await serve_job(context, connection, len(given), prepare)


def _check_supported(body: CompletionRequest) -> None:
    if body.suffix:
        raise InvalidRequestError("suffix is not supported: these models only write onwards; leave it out", "suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequestError(
            f"best_of is {body.best_of} and n is {body.n or 1}; only equal values are supported: leave best_of out",
            "best_of",
        )


async def _prepare(context: ServingContext, body: CompletionRequest, given: list[str] | list[list[int]]) -> Job:
    engine = context.engine
    prompts = await encode(engine.tokenizer, given, add_special_tokens=body.add_special_tokens is not False)
    for prompt in prompts:
        check_prompt(prompt, engine.tokenizer.vocab_size, engine.max_model_len, "prompt")
    asked, field = asked_max_tokens(body, least=0 if body.echo else 1)
    room = room_for_output(max(map(len, prompts)), asked, field, engine.max_model_len)
    params = sampling_params(
        body,
        TokenLimits(max_n=context.config.max_n, vocab_size=engine.tokenizer.vocab_size),
        max_tokens=min(room, DEFAULT_MAX_TOKENS) if asked is None else max(1, room),
        logprobs=body.logprobs,
        prompt_logprobs=_prompt_logprobs(body),
    )
    identity = f"cmpl-{uuid.uuid4().hex}"
    writer = _CompletionWriter(context, body, given, identity, params.n, prompt_only=asked == 0)
    return Job(
        id=identity,
        prompts=prompts,
        params=params,
        priority=priority_of(body),
        writer=writer if body.stream else None,
        whole=writer.whole,
    )


def _prompt_logprobs(body: CompletionRequest) -> int | None:
    """An echoed prompt shows log-probabilities too."""
    return body.logprobs if body.prompt_logprobs is None and body.echo else body.prompt_logprobs


@dataclass
class _Sent:
    """What of a completion has been written."""

    chars: int = 0
    tokens: int = 0
    begun: bool = False
    finished: bool = False


class _CompletionWriter:
    """Makes the answer's choices: choice ``i`` of prompt ``p`` has the index ``p * n + i``.

    With ``prompt_only`` the client wants its prompt back, with log-probabilities if it asks for them, and no more.
    """

    def __init__(
        self,
        context: ServingContext,
        body: CompletionRequest,
        given: Sequence[str | list[int]],
        identity: str,
        n: int,
        *,
        prompt_only: bool,
    ) -> None:
        self._tokenizer = context.engine.tokenizer
        self._model = context.model_name
        self._body = body
        self._given = given
        self._id = identity
        self._n = n
        self._prompt_only = prompt_only
        self._created = int(time.time())
        self._encoder = msgspec.json.Encoder()
        self._sent = [_Sent() for _ in range(n * len(given))]
        self._usage: msgspec.UnsetType | None = None if includes_usage(body) else msgspec.UNSET
        skipped = frozenset(self._tokenizer.special_ids) if body.skip_special_tokens is not False else frozenset()
        self._logprobs = [CompletionLogprobsWriter(self._tokenizer, body.logprobs or 0, skipped) for _ in self._sent]

    def first(self) -> bytes:
        return b""

    def changed(self, prompt_index: int, output: RequestOutput) -> bytes:
        events = []
        for completion in self._shown(output).outputs:
            index = prompt_index * self._n + completion.index
            sent = self._sent[index]
            news = len(completion.text) > sent.chars or completion.finished or self._has_new_logprobs(completion, sent)
            if news and not sent.finished:
                choice = self._choice(index, output, completion)
                events.append(event(self._encoder, self._completion([choice], self._usage)))
        return b"".join(events)

    def last(self, outputs: MergedOutputs) -> bytes:
        if self._usage is msgspec.UNSET:
            return b""
        return event(self._encoder, self._completion([], usage_of(map(self._shown, outputs.latest.values()))))

    def whole(self, outputs: Sequence[RequestOutput]) -> bytes:
        """The answer in one piece."""
        outputs = [self._shown(output) for output in outputs]
        choices = [
            self._choice(prompt_index * self._n + completion.index, output, completion)
            for prompt_index, output in enumerate(outputs)
            for completion in sorted(output.outputs, key=lambda one: one.index)
        ]
        return self._encoder.encode(self._completion(choices, usage_of(outputs)))

    def _shown(self, output: RequestOutput) -> RequestOutput:
        """An engine generates one token at least."""
        return _without_completions(output) if self._prompt_only else output

    def _completion(self, choices: list[CompletionChoice], usage: Usage | msgspec.UnsetType | None) -> Completion:
        return Completion(self._id, self._created, self._model, choices, usage)

    def _choice(self, index: int, output: RequestOutput, completion: CompletionOutput) -> CompletionChoice:
        """What has not been written yet of a completion; an echoed prompt comes before its first piece."""
        sent = self._sent[index]
        echoes = bool(self._body.echo) and not sent.begun
        text = completion.text[sent.chars :]
        if echoes:
            text = self._prompt_text(index // self._n, output) + text
        logprobs = self._next_logprobs(index, output, completion, echoes) if self._body.logprobs is not None else None
        sent.begun = True
        sent.chars = len(completion.text)
        sent.finished = completion.finished
        return CompletionChoice(
            index, text, logprobs, completion.finish_reason, completion.stop_reason, self._prompt_logprobs(output)
        )

    def _prompt_text(self, prompt_index: int, output: RequestOutput) -> str:
        given = self._given[prompt_index]
        return given if isinstance(given, str) else self._tokenizer.decode(output.prompt_token_ids, False)

    def _has_new_logprobs(self, completion: CompletionOutput, sent: _Sent) -> bool:
        return self._body.logprobs is not None and len(completion.logprobs or ()) > sent.tokens

    def _next_logprobs(
        self, index: int, output: RequestOutput, completion: CompletionOutput, echoes: bool
    ) -> CompletionLogprobs:
        sent = self._sent[index]
        writer = self._logprobs[index]
        entries = (completion.logprobs or [])[sent.tokens :]
        prompt = writer.write(output.prompt_token_ids, output.prompt_logprobs or []) if echoes else None
        piece = writer.write(completion.token_ids[sent.tokens : sent.tokens + len(entries)], entries)
        sent.tokens += len(entries)
        return piece if prompt is None else joined(prompt, piece)

    def _prompt_logprobs(self, output: RequestOutput) -> PromptLogprobs | msgspec.UnsetType | None:
        if self._body.prompt_logprobs is None:
            return msgspec.UNSET
        return prompt_logprobs(self._tokenizer, output.prompt_logprobs or [])


def _without_completions(output: RequestOutput) -> RequestOutput:
    empty = [
        replace(
            one,
            text="",
            token_ids=[],
            logprobs=None if one.logprobs is None else [],
            finish_reason="length" if one.finished else None,
            stop_reason=None,
        )
        for one in output.outputs
    ]
    return replace(output, outputs=empty)
