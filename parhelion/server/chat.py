"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from parhelion.errors import InvalidRequestError
from parhelion.server.connection import Connection
from parhelion.server.context import ServingContext
from parhelion.server.logprobs import chat_logprobs, prompt_logprobs
from parhelion.server.outputs import MergedOutputs
from parhelion.server.params import TokenLimits, asked_max_tokens, includes_usage, priority_of, sampling_params
from parhelion.server.prompts import check_prompt, encode, render_chat, room_for_output
from parhelion.server.protocol import ChatCompletionRequest
from parhelion.server.responses import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
)
from parhelion.server.running import Job, serve_job
from parhelion.server.streaming import event
from parhelion.server.usage import usage_of
from parhelion.types import MAX_LOGPROBS, CompletionOutput, RequestOutput


async def answer_chat(context: ServingContext, body: ChatCompletionRequest, connection: Connection) -> None:
    """Check the body, run the conversation and answer."""
    context.check_model(body.model)
    _check_supported(body)

    async def prepare() -> Job:
        return await _prepare(context, body)

    await serve_job(context, connection, 1, prepare)


def _check_supported(body: ChatCompletionRequest) -> None:
    kind = (body.response_format or {}).get("type", "text")
    if kind != "text" or (body.response_format is not None and "type" not in body.response_format):
        raise InvalidRequestError(
            f"response_format of type {str(kind)[:100]!r} is not supported yet; use {{'type': 'text'}} or leave it out",
            "response_format",
        )
    if body.tools:
        raise InvalidRequestError("tools are not supported yet; leave them out", "tools")
    if body.tool_choice not in (None, "none"):
        raise InvalidRequestError("tool_choice is not supported yet; use 'none' or leave it out", "tool_choice")
    if body.modalities not in (None, ["text"]):
        raise InvalidRequestError("modalities other than ['text'] are not supported; leave them out", "modalities")
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs: true", "top_logprobs")
    if not 0 <= (body.top_logprobs or 0) <= MAX_LOGPROBS:
        raise InvalidRequestError(
            f"top_logprobs is {body.top_logprobs}; it must lie in 0..{MAX_LOGPROBS}", "top_logprobs"
        )


async def _prepare(context: ServingContext, body: ChatCompletionRequest) -> Job:
    engine = context.engine
    text = await render_chat(engine.tokenizer, body.messages, body)
    (prompt,) = await encode(engine.tokenizer, [text], add_special_tokens=False)  # the template writes them itself
    check_prompt(prompt, engine.tokenizer.vocab_size, engine.max_model_len, "messages")
    params = sampling_params(
        body,
        TokenLimits(max_n=context.config.max_n, vocab_size=engine.tokenizer.vocab_size),
        max_tokens=room_for_output(len(prompt), *asked_max_tokens(body), engine.max_model_len),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
    )
    writer = _ChatWriter(context, body, f"chatcmpl-{uuid.uuid4().hex}", params.n)
    return Job(
        id=writer.id,
        prompts=[prompt],
        params=params,
        priority=priority_of(body),
        writer=writer if body.stream else None,
        whole=writer.whole,
    )


@dataclass
class _Sent:
    """What of an answer has been written."""

    chars: int = 0
    tokens: int = 0
    finished: bool = False


class _ChatWriter:
    """Makes the answer's choices or the stream's chunks."""

    def __init__(self, context: ServingContext, body: ChatCompletionRequest, identity: str, n: int) -> None:
        self.id = identity
        self._tokenizer = context.engine.tokenizer
        self._model = context.model_name
        self._body = body
        self._created = int(time.time())
        self._encoder = msgspec.json.Encoder()
        self._sent = [_Sent() for _ in range(n)]
        self._usage: msgspec.UnsetType | None = None if includes_usage(body) else msgspec.UNSET

    def first(self) -> bytes:
        opening = ChatDelta(role="assistant", content="")
        return b"".join([self._event(ChatChunkChoice(index, opening)) for index in range(len(self._sent))])

    def changed(self, prompt_index: int, output: RequestOutput) -> bytes:
        events = []
        for completion in output.outputs:
            sent = self._sent[completion.index]
            if sent.finished:
                continue
            text = completion.text[sent.chars :]
            logprobs = self._logprobs(completion, sent)
            if text or logprobs is not None:
                events.append(self._event(ChatChunkChoice(completion.index, ChatDelta(content=text), logprobs)))
            if completion.finish_reason is not None:
                events.append(self._event(_closing_choice(completion)))
            sent.chars = len(completion.text)
            sent.finished = completion.finished
        return b"".join(events)

    def last(self, outputs: MergedOutputs) -> bytes:
        if self._usage is msgspec.UNSET:
            return b""
        usage = usage_of(outputs.latest.values())
        return event(self._encoder, ChatCompletionChunk(self.id, self._created, self._model, [], usage))

    def whole(self, outputs: Sequence[RequestOutput]) -> bytes:
        """The answer in one piece."""
        (output,) = outputs
        choices = [self._choice(completion) for completion in sorted(output.outputs, key=lambda one: one.index)]
        answer = ChatCompletion(self.id, self._created, self._model, choices, usage_of(outputs))
        if self._body.prompt_logprobs is not None:
            shown = prompt_logprobs(self._tokenizer, output.prompt_logprobs or [])
            answer = msgspec.structs.replace(answer, prompt_logprobs=shown)
        return self._encoder.encode(answer)

    def _event(self, choice: ChatChunkChoice) -> bytes:
        chunk = ChatCompletionChunk(self.id, self._created, self._model, [choice], self._usage)
        return event(self._encoder, chunk)

    def _choice(self, completion: CompletionOutput) -> ChatChoice:
        return ChatChoice(
            completion.index,
            AssistantMessage(completion.text),
            self._logprobs(completion, self._sent[completion.index]),
            completion.finish_reason,
            completion.stop_reason,
        )

    def _logprobs(self, completion: CompletionOutput, sent: _Sent) -> ChatLogprobs | None:
        """Those not written yet; None if there are none or nobody asked."""
        if not self._body.logprobs:
            return None
        entries = (completion.logprobs or [])[sent.tokens :]
        if not entries:
            return None
        token_ids = completion.token_ids[sent.tokens : sent.tokens + len(entries)]
        sent.tokens += len(entries)
        return chat_logprobs(self._tokenizer, token_ids, entries, self._body.top_logprobs or 0)


def _closing_choice(completion: CompletionOutput) -> ChatChunkChoice:
    return ChatChunkChoice(
        completion.index, ChatDelta(), None, completion.finish_reason, stop_reason=completion.stop_reason
    )
