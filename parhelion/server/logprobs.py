"""Log-probabilities in the shapes of OpenAI's two interfaces and of vLLM's ``prompt_logprobs``."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from parhelion.server.engine_client import TokenizerClient
from parhelion.server.responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from parhelion.types import Logprob, TokenLogprobs

MIN_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot hold (a token that the parameters have ruled out)."""


def likeliest(entries: TokenLogprobs, count: int) -> list[tuple[int, Logprob]]:
    """The ``count`` likeliest tokens in order; ``entries`` may also hold a chosen one that is not among them."""
    return sorted(entries.items(), key=lambda item: item[1].rank)[:count]


def chat_logprobs(
    tokenizer: TokenizerClient, token_ids: Sequence[int], entries: Sequence[TokenLogprobs], count: int
) -> ChatLogprobs:
    """One entry a token, with the ``count`` likeliest."""
    content = []
    for token_id, at_token in zip(token_ids, entries, strict=True):
        chosen = _top_logprob(tokenizer, token_id, at_token[token_id])
        top = [_top_logprob(tokenizer, other, logprob) for other, logprob in likeliest(at_token, count)]
        content.append(ChatTokenLogprob(chosen.token, chosen.logprob, chosen.bytes, top))
    return ChatLogprobs(content)


def prompt_logprobs(tokenizer: TokenizerClient, entries: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """One entry a prompt token; none where nothing comes before it."""
    return [
        None
        if at_token is None
        else {
            str(token_id): PromptLogprob(_finite(one.logprob), one.rank, _text(tokenizer, token_id, one))
            for token_id, one in at_token.items()
        }
        for at_token in entries
    ]


class CompletionLogprobsWriter:
    """Writes one completion's log-probabilities piece by piece, and keeps count of the characters.

    Args:
        tokenizer: gives the tokens' texts and bytes.
        count: alternatives a token; with 0 ``top_logprobs`` is null, as OpenAI has it.
        skipped_ids: tokens that leave no text.
    """

    def __init__(self, tokenizer: TokenizerClient, count: int, skipped_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._count = count
        self._skipped_ids = skipped_ids
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def write(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> CompletionLogprobs:
        """The next tokens. An entry is none for a prompt's first token."""
        piece = CompletionLogprobs([], [], [] if self._count else None, [])
        for token_id, at_token in zip(token_ids, entries, strict=True):
            piece.text_offset.append(self._offset)
            piece.tokens.append(self._token_text(token_id, at_token))
            piece.token_logprobs.append(None if at_token is None else _finite(at_token[token_id].logprob))
            if piece.top_logprobs is not None:
                piece.top_logprobs.append(None if at_token is None else self._top(token_id, at_token))
            if token_id not in self._skipped_ids:
                self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))
        return piece

    def _token_text(self, token_id: int, at_token: TokenLogprobs | None) -> str:
        return (
            self._tokenizer.token_text(token_id)
            if at_token is None
            else _text(self._tokenizer, token_id, at_token[token_id])
        )

    def _top(self, token_id: int, at_token: TokenLogprobs) -> dict[str, float]:
        """The likeliest and the chosen; of tokens with the same text, the likelier."""
        top: dict[str, float] = {}
        for other, one in [*likeliest(at_token, self._count), (token_id, at_token[token_id])]:
            top.setdefault(_text(self._tokenizer, other, one), _finite(one.logprob))
        return top


def joined(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """Two pieces, one after the other."""
    top = None if first.top_logprobs is None else [*first.top_logprobs, *(second.top_logprobs or ())]
    return CompletionLogprobs(
        [*first.tokens, *second.tokens],
        [*first.token_logprobs, *second.token_logprobs],
        top,
        [*first.text_offset, *second.text_offset],
    )


def _top_logprob(tokenizer: TokenizerClient, token_id: int, one: Logprob) -> TopLogprob:
    return TopLogprob(_text(tokenizer, token_id, one), _finite(one.logprob), list(tokenizer.token_bytes(token_id)))


def _text(tokenizer: TokenizerClient, token_id: int, one: Logprob) -> str:
    return one.decoded_token or tokenizer.token_text(token_id)


def _finite(logprob: float) -> float:
    return max(logprob, MIN_LOGPROB)
