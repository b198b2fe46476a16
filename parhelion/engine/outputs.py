"""From tokens to what a user sees: text, stop strings, log-probabilities, and several completions under one request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from parhelion.engine.detokenizer import IncrementalDetokenizer
from parhelion.engine.intake import TokenizedPrompt
from parhelion.engine.messages import AddRequest, TokenLogprob, TokenOutput
from parhelion.models.tokenizer import Tokenizer
from parhelion.types import CompletionOutput, Logprob, RequestOutput, RequestTimes, SamplingParams, TokenLogprobs

MAX_RESTARTS = 1
"""Times that a request begins again. More, and one that its engine cannot bear would end all replicas in turn."""


@dataclass
class _Completion:
    """One completion in the making."""

    request: RequestOutput
    output: CompletionOutput
    detokenizer: IncrementalDetokenizer


@dataclass
class _Request:
    """All that it takes to begin again.

    Attributes:
        is_pinned: its user has seen some of it.
    """

    result: RequestOutput
    params: SamplingParams
    requests: Sequence[AddRequest]
    is_pinned: bool = False
    num_restarts: int = 0


@dataclass(frozen=True)
class Lost:
    """What becomes of requests whose engine has ended.

    Attributes:
        again: those that begin again.
        to_send: their engine requests.
        given_up: the others.
    """

    again: list[RequestOutput]
    to_send: list[AddRequest]
    given_up: list[RequestOutput]


@dataclass(frozen=True)
class Processed:
    """What a batch of tokens has changed.

    Attributes:
        changed: requests with news, each once.
        to_abort: engine requests that a stop string ended.
    """

    changed: list[RequestOutput]
    to_abort: list[str]


class OutputProcessor:
    """Holds every unfinished request of one front end.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._completions: dict[str, _Completion] = {}
        self._requests: dict[str, _Request] = {}

    def add(
        self, request_id: str, prompt: TokenizedPrompt, params: SamplingParams, requests: Sequence[AddRequest]
    ) -> RequestOutput:
        """Start a request; the output that is returned is updated in place by ``process``."""
        result = RequestOutput(
            request_id=request_id,
            prompt=prompt.text,
            prompt_token_ids=prompt.token_ids,
            outputs=[],
            finished=False,
        )
        self._requests[request_id] = _Request(result, params, requests)
        self._begin(self._requests[request_id])
        return result

    def _begin(self, request: _Request) -> None:
        """From nothing; what was there before stays as it is for whoever has it."""
        request.result.outputs = [
            CompletionOutput(
                index=index,
                logprobs=None if request.params.logprobs is None else [],
                cumulative_logprob=None if request.params.logprobs is None else 0.0,
            )
            for index in range(len(request.requests))
        ]
        # A prompt's first token has none, so a prompt of one token lacks nothing.
        is_known = request.params.prompt_logprobs is not None and len(request.result.prompt_token_ids) == 1
        request.result.prompt_logprobs = [None] if is_known else None
        request.result.num_cached_tokens = 0
        request.result.times = RequestTimes(arrival=request.requests[0].arrival)
        for each, output in zip(request.requests, request.result.outputs, strict=True):
            detokenizer = IncrementalDetokenizer(self._tokenizer, request.result.prompt_token_ids, request.params)
            self._completions[each.request_id] = _Completion(request.result, output, detokenizer)

    def pin(self, output: RequestOutput) -> None:
        """Its user has seen some of it: it cannot begin again."""
        if (request := self._requests.get(output.request_id)) is not None:
            request.is_pinned = True

    def lost(self, names: Sequence[str], *, others_serve: bool) -> Lost:
        """Engine requests were lost. Their requests begin again from nothing, with the same seeds, if they can.

        Args:
            names: of engine requests; those that are over are ignored.
            others_serve: there is who would run them.
        """
        unfinished = [self._completions[name].request.request_id for name in names if name in self._completions]
        found = [self._requests[request_id] for request_id in dict.fromkeys(unfinished)]
        lost = Lost([], [], [])
        for request in found:
            if others_serve and not request.is_pinned and request.num_restarts < MAX_RESTARTS:
                request.num_restarts += 1
                self._begin(request)
                lost.again.append(request.result)
                lost.to_send.extend(request.requests)
            else:
                lost.given_up.append(request.result)
        return lost

    def process(self, tokens: Sequence[TokenOutput]) -> Processed:
        """Take in the tokens of a step. Tokens of requests that are over are ignored."""
        now = time.monotonic()
        changed: dict[str, RequestOutput] = {}
        to_abort = []
        for token in tokens:
            completion = self._completions.get(token.request_id)
            if completion is None:
                continue
            if self._take(completion, token, now) and token.finish_reason is None:
                to_abort.append(token.request_id)
            request = completion.request
            if completion.output.finished:
                del self._completions[token.request_id]
                request.finished = all(output.finished for output in request.outputs)
                if request.finished:
                    del self._requests[request.request_id]
            changed[request.request_id] = request
        return Processed(list(changed.values()), to_abort)

    def forget(self, request: RequestOutput) -> list[str]:
        """Drop a request that its user no longer wants.

        Returns:
            The engine requests of it that were unfinished.
        """
        known = self._requests.pop(request.request_id, None)
        names = [each.request_id for each in known.requests] if known is not None else []
        return [name for name in names if self._completions.pop(name, None) is not None]

    def request_of(self, name: str) -> RequestOutput | None:
        """The request that an unfinished engine request belongs to."""
        completion = self._completions.get(name)
        return None if completion is None else completion.request

    @property
    def num_unfinished(self) -> int:
        """Completions still in the making."""
        return len(self._completions)

    def _take(self, completion: _Completion, token: TokenOutput, now: float) -> bool:
        """Add a token to its completion. True if a stop string ended it."""
        request, output = completion.request, completion.output
        if request.times is not None:
            request.times.first_token = request.times.first_token or now
            request.times.last_token = now
        request.num_cached_tokens = max(request.num_cached_tokens, token.num_cached_tokens)
        if token.prompt_logprobs is not None and request.prompt_logprobs is None:
            request.prompt_logprobs = [None, *(self._logprobs(item) for item in token.prompt_logprobs)]
        output.token_ids.append(token.token_id)
        if token.logprob is not None and output.logprobs is not None:
            output.logprobs.append(self._logprobs(token.logprob))
            output.cumulative_logprob = (output.cumulative_logprob or 0.0) + token.logprob.logprob
        matched = completion.detokenizer.append((token.token_id,), token.finish_reason is not None)
        output.text = completion.detokenizer.text
        if matched is not None:
            output.finish_reason, output.stop_reason = "stop", matched
        else:
            output.finish_reason, output.stop_reason = token.finish_reason, token.stop_token_id
        return matched is not None

    def _logprobs(self, item: TokenLogprob) -> TokenLogprobs:
        text = self._tokenizer.token_text
        result = {item.token_id: Logprob(item.logprob, item.rank, text(item.token_id))}
        for rank, (token_id, logprob) in enumerate(zip(item.top_ids, item.top_logprobs, strict=True), start=1):
            result.setdefault(token_id, Logprob(logprob, rank, text(token_id)))
        return result
