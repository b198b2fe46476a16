"""From what a user asks to what the engine computes: tokenize, check, and split ``n`` completions into requests."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

from parhelion.engine.messages import AddRequest, EngineInfo
from parhelion.errors import InvalidRequestError
from parhelion.models.tokenizer import Tokenizer
from parhelion.types import Prompt, SamplingParams


@dataclass(frozen=True)
class TokenizedPrompt:
    """Attributes:
    text: None if the user gave ids.
    """

    text: str | None
    token_ids: list[int]


class Intake:
    """Checks requests against the model's limits.

    Args:
        tokenizer: of the model.
        info: of the engine.
        seed: base of the seeds drawn for requests that bring none.
    """

    def __init__(self, tokenizer: Tokenizer, info: EngineInfo, seed: int) -> None:
        self._tokenizer = tokenizer
        self._info = info
        self._seeds = random.Random(seed)
        self._numbers = count()

    def tokenize(self, prompt: Prompt) -> TokenizedPrompt:
        """Text or ids to ids.

        Raises:
            InvalidRequestError: empty, too long for the model, or with ids outside its vocabulary.
        """
        if isinstance(prompt, str):
            tokenized = TokenizedPrompt(prompt, self._tokenizer.encode(prompt))
        elif isinstance(prompt, dict) and "prompt_token_ids" in prompt:
            tokenized = TokenizedPrompt(None, list(prompt["prompt_token_ids"]))
        else:
            raise InvalidRequestError(
                f"a prompt is a string or {{'prompt_token_ids': [...]}}, not {type(prompt).__name__}", "prompt"
            )
        # A tokenizer may know more tokens than the model has embeddings, so ids that came from text are checked too.
        self._check_ids("prompt", tokenized.token_ids)
        count, limit = len(tokenized.token_ids), self._info.max_model_len
        if not count:
            raise InvalidRequestError("the prompt is empty: it must hold at least one token", "prompt")
        if count >= limit:
            raise InvalidRequestError(
                f"the prompt has {count} tokens, and the model takes at most {limit}, output included: shorten it "
                "or raise max_model_len",
                "prompt",
                "context_length_exceeded",
            )
        return tokenized

    def requests(
        self, request_id: str, prompt_token_ids: list[int], params: SamplingParams, priority: int
    ) -> list[AddRequest]:
        """One request a completion; completion i uses seed + i.

        Their names never come twice, even if ``request_id`` does: what the engine had sent of an aborted request may
        still be on its way when the next one of that name starts.

        Raises:
            InvalidRequestError: a parameter names a token that the model does not have.
        """
        self._check_ids("logit_bias", list(params.logit_bias or ()))
        self._check_ids("stop_token_ids", params.stop_token_ids)
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            # An end-of-sequence id beyond the model's vocabulary can never be sampled.
            ends = (*self._info.eos_token_ids, *self._tokenizer.eos_token_ids)
            stop_ids.update(token_id for token_id in ends if token_id < self._info.vocab_size)
        unique = f"{request_id}#{next(self._numbers)}"
        room = self._info.max_model_len - len(prompt_token_ids)
        seed = params.seed if params.seed is not None else self._seeds.getrandbits(63)
        arrival = time.monotonic()
        return [
            AddRequest(
                request_id=f"{unique}/{index}",
                prompt_token_ids=prompt_token_ids,
                params=params,
                seed=(seed + index) % (1 << 64),
                stop_token_ids=sorted(stop_ids),
                max_tokens=min(params.max_tokens or room, room),
                priority=priority,
                arrival=arrival,
            )
            for index in range(params.n)
        ]

    def _check_ids(self, param: str, token_ids: Sequence[int]) -> None:
        # All at once: a loop over a long prompt takes as long as a decode step.
        if not token_ids or (
            set(map(type, token_ids)) == {int} and min(token_ids) >= 0 and max(token_ids) < self._info.vocab_size
        ):
            return
        for token_id in token_ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int):
                raise InvalidRequestError(f"{param} must hold integer token ids, not {token_id!r}", param)
            if not 0 <= token_id < self._info.vocab_size:
                raise InvalidRequestError(
                    f"{param} names token {token_id}; the model's ids run from 0 to {self._info.vocab_size - 1}", param
                )
