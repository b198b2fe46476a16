"""Text from token ids as they come: no character is ever split, and no stop string ever shows."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from parhelion.models.tokenizer import Tokenizer
from parhelion.types import SamplingParams


class IncrementalDetokenizer:
    """The text of one completion, growing token by token at a cost that does not depend on its length.

    Tokens are joined as bytes and decoded as UTF-8, where an unfinished character waits for its rest. The tail that
    may be the beginning of a stop string waits too, until it is one or can be none.

    Attributes:
        num_tokens: tokens taken in; after a stop string those up to the one that completed it.
        stop_string: the stop string that ended the text, or None.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], params: SamplingParams) -> None:
        """Start an empty completion.

        Args:
            tokenizer: of the model.
            prompt_token_ids: what the completion goes on from. After a prompt the space before a SentencePiece
                tokenizer's first word is kept, as it separates the two; without one it is left out, as in ``decode``.
            params: ``stop``, ``min_tokens``, ``skip_special_tokens`` and ``include_stop_str_in_output`` are read.
        """
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if params.skip_special_tokens else frozenset[int]()
        self._stops = tuple(params.stop)
        self._min_tokens = params.min_tokens
        self._includes_stop = params.include_stop_str_in_output
        self._drops_space = tokenizer.drops_first_space and not prompt_token_ids
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._shown: list[str] = []
        self._held = ""
        self.num_tokens = 0
        self.stop_string: str | None = None

    @property
    def text(self) -> str:
        """What may be shown so far; it only ever grows."""
        if len(self._shown) > 1:
            self._shown = ["".join(self._shown)]
        return self._shown[0] if self._shown else ""

    def append(self, token_ids: Sequence[int], finished: bool) -> str | None:
        """Take in the next tokens.

        Args:
            token_ids: in order; those after the one that completes a stop string are ignored.
            finished: nothing follows: what was held back is shown, an unfinished character as U+FFFD.

        Returns:
            The stop string that now ends the text, or None. The one that completes first wins, and of several that
            complete at the same character the longest.
        """
        for token_id in token_ids:
            if self.stop_string is not None:
                return self.stop_string
            self.num_tokens += 1
            if token_id not in self._skipped:
                self._take(self._utf8.decode(self._tokenizer.token_bytes(token_id)))
        if finished and self.stop_string is None:
            self._take(self._utf8.decode(b"", final=True))
            if self.stop_string is None:
                self._show(self._held)
                self._held = ""
        return self.stop_string

    def _take(self, piece: str) -> None:
        if self._drops_space and piece:
            piece = piece.removeprefix(" ")
            self._drops_space = False
        if not piece:
            return
        if not self._stops:
            self._show(piece)
            return
        window = self._held + piece
        stop, end = self._first_match(window) if self.num_tokens >= self._min_tokens else (None, 0)
        if stop is not None:
            self.stop_string = stop
            self._show(window[: end if self._includes_stop else end - len(stop)])
            self._held = ""
            return
        num_shown = len(window) - self._possible_prefix(window)
        self._show(window[:num_shown])
        self._held = window[num_shown:]

    def _show(self, piece: str) -> None:
        if piece:
            self._shown.append(piece)

    def _first_match(self, window: str) -> tuple[str | None, int]:
        """The stop string that completes first within the new part of the window, and where it ends."""
        best: str | None = None
        best_end = 0
        for stop in self._stops:
            # A match that ended in the held part was looked at, or was too early to count, when it came.
            start = window.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start < 0:
                continue
            end = start + len(stop)
            if best is None or end < best_end or (end == best_end and len(stop) > len(best)):
                best, best_end = stop, end
        return best, best_end

    def _possible_prefix(self, window: str) -> int:
        """Length of the longest tail of the window with which a stop string may begin."""
        longest = max(len(stop) for stop in self._stops) - 1
        for length in range(min(longest, len(window)), 0, -1):
            tail = window[-length:]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._stops):
                return length
        return 0
