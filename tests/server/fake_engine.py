"""An engine without a model: it recites a fixed text, as slowly as a test wants, and notes what happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from parhelion.errors import EngineDeadError, ParhelionError, QueueFullError
from parhelion.types import (
    CompletionOutput,
    EngineStats,
    Logprob,
    Prompt,
    ReplicaState,
    RequestOutput,
    SamplingParams,
    TokenLogprobs,
)

BOS, EOS = 256, 257
RECITAL = "Grüße from the façade: " + "one two three four five six seven eight nine ten 🌞 " * 40


def recited(num_tokens: int) -> str:
    """The text of the recital's first tokens."""
    return RECITAL.encode()[:num_tokens].decode(errors="ignore")


class ByteTokenizer:
    """A token for each byte, and two special ones."""

    vocab_size = 258
    eos_token_ids = (EOS,)
    special_ids = frozenset({BOS, EOS})
    has_chat_template = True

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        kept = [one for one in ids if not (skip_special_tokens and one in self.special_ids)]
        return b"".join(self.token_bytes(one) for one in kept).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return {BOS: b"<s>", EOS: b"</s>"}.get(token_id) or bytes([token_id])

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        if template_kwargs and "fail" in template_kwargs:
            raise TypeError("fail is not a variable of this template")
        turns = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
        return turns + ("\nassistant:" if add_generation_prompt else "" if continue_final_message else "\n")


class FakeEngine:
    """Recites ``reply``, a byte a token; completion ``i`` starts ``i`` characters later.

    Attributes:
        delay_s: pause before every token.
        fail_after: raise ``failure`` after this many tokens.
        max_running: one more is refused with QueueFullError.
        params, prompts, priorities, whole: what was asked for, by request id.
        aborted: ids of requests that were closed before their end.
        counts: what ``stats`` says beside the running requests and the tokens made.
    """

    def __init__(self, reply: str = RECITAL, *, delay_s: float = 0.0, max_model_len: int = 4096) -> None:
        self.tokenizer = ByteTokenizer()
        self.model_name = "fake"
        self.max_model_len = max_model_len
        self.is_dead = False
        self.replicas: Sequence[ReplicaState] = ()
        self.reply = reply
        self.delay_s = delay_s
        self.fail_after: int | None = None
        self.failure: Exception = EngineDeadError("the engine died")
        self.max_running = 10_000
        self.params: dict[str, SamplingParams] = {}
        self.prompts: dict[str, list[int]] = {}
        self.priorities: dict[str, int] = {}
        self.whole: dict[str, bool] = {}
        self.aborted: list[str] = []
        self.running: set[str] = set()
        self._replies: dict[int, bytes] = {}
        self.counts = EngineStats(num_blocks=100, num_blocks_in_use=25, preemptions_total=3)
        self.tokens_made = 0
        self.most_running = 0

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str, priority: int = 0, whole: bool = False
    ) -> AsyncIterator[RequestOutput]:
        if self.is_dead:
            raise EngineDeadError("the engine died")
        if len(self.running) >= self.max_running:
            raise QueueFullError("too many requests are waiting")
        assert not isinstance(prompt, str)
        assert request_id not in self.params
        self.params[request_id], self.priorities[request_id] = params, priority
        self.whole[request_id] = whole
        self.prompts[request_id] = list(prompt["prompt_token_ids"])
        self.running.add(request_id)
        self.most_running = max(self.most_running, len(self.running))
        output = self._new_output(request_id, params)
        try:
            while not output.finished:
                await asyncio.sleep(self.delay_s)
                for completion in output.outputs:
                    self._advance(completion, params)
                output.finished = all(completion.finished for completion in output.outputs)
                yield output
        finally:
            self.running.discard(request_id)
            if not output.finished:
                self.aborted.append(request_id)

    def _new_output(self, request_id: str, params: SamplingParams) -> RequestOutput:
        prompt = self.prompts[request_id]
        outputs = [
            CompletionOutput(index, logprobs=None if params.logprobs is None else []) for index in range(params.n)
        ]
        output = RequestOutput(request_id, None, prompt, outputs, finished=False, num_cached_tokens=len(prompt) // 2)
        if params.prompt_logprobs is not None:
            output.prompt_logprobs = [None, *(self._logprobs(one, params.prompt_logprobs) for one in prompt[1:])]
        return output

    def _advance(self, completion: CompletionOutput, params: SamplingParams) -> None:
        if completion.finished:
            return
        made = len(completion.token_ids)
        if self.fail_after is not None and made >= self.fail_after:
            raise self.failure
        whole = self._encoded(completion.index)
        token_id = EOS if made >= len(whole) else whole[made]
        completion.token_ids.append(token_id)
        self.tokens_made += 1
        if completion.logprobs is not None:
            completion.logprobs.append(self._logprobs(token_id, params.logprobs or 0))
        text = whole[: made + 1].decode(errors="ignore")
        found = next((stop for stop in params.stop if stop in text), None)
        if found is not None:
            completion.text = text[: text.index(found)]
            completion.finish_reason, completion.stop_reason = "stop", found
        elif token_id == EOS or len(completion.token_ids) == params.max_tokens:
            completion.text = text
            completion.finish_reason = "stop" if token_id == EOS else "length"
        else:
            held = max((len(stop) - 1 for stop in params.stop), default=0)
            completion.text = text[: max(0, len(text) - held)]

    def _encoded(self, start: int) -> bytes:
        if start not in self._replies:
            self._replies[start] = self.reply[start:].encode()
        return self._replies[start]

    def _logprobs(self, token_id: int, count: int) -> TokenLogprobs:
        """The chosen token is the second likeliest; the likeliest has the next id."""
        others = [(token_id + 1) % 256, *((token_id + step) % 256 for step in range(2, 25))]
        ranked = [others[0], token_id, *others[1:]]
        entries = {token_id: Logprob(-1.0, 2, self.tokenizer.token_text(token_id))}
        for rank, other in enumerate(ranked[:count], start=1):
            entries.setdefault(other, Logprob(-0.5 * rank, rank))
        return entries

    async def stats(self) -> EngineStats:
        if self.is_dead:
            raise EngineDeadError("the engine died")
        return replace(self.counts, num_running=len(self.running), generation_tokens_total=self.tokens_made)

    async def shutdown(self) -> None:
        self.is_dead = True

    def die(self, error: ParhelionError) -> None:
        """Every request fails at its next token."""
        self.is_dead, self.fail_after, self.failure = True, 0, error
