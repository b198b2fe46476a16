"""Guesses without a second model: what followed the last time that the same few tokens stood in the text.

Sources: "Inference with Reference" (Yang et al., 2023, arXiv:2304.04487) and prompt lookup decoding (Saxena, 2023). An
index that each new token extends takes the place of scanning the text at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np

from parhelion.errors import ConfigError

MULTIPLIER = 0x9E3779B97F4A7C15
"""Base of the polynomial, modulo 2**64, that makes one number of an n-gram: odd, and far from any small ratio."""

_MASK = 2**64 - 1


class NgramProposer:
    """Finds the latest earlier occurrence of a request's last n tokens and proposes what followed it.

    The longest n that occurs decides. Taking in a token costs O(longest), a proposal O(longest + count), both whatever
    the length of the text. Memory grows with the length of the text times the number of different n.

    Args:
        longest: most tokens that an occurrence is matched by.
        shortest: fewest; with 1, any token that has occurred before is match enough.

    Raises:
        ConfigError: ``shortest`` is below 1 or above ``longest``.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if shortest < 1:
            raise ConfigError(f"the shortest n-gram has {shortest} tokens; it needs at least 1: choose shortest >= 1")
        if longest < shortest:
            raise ConfigError(
                f"the longest n-gram has {longest} tokens and the shortest {shortest}: "
                f"choose longest >= {shortest} or shortest <= {longest}"
            )
        self._shortest = shortest
        self._weights = [pow(MULTIPLIER, power, 2**64) for power in range(longest)]
        self._histories: dict[str, _History] = {}

    def start(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Follow a request from here on; see ``Proposer.start``."""
        self._histories[request_id] = _History(token_ids, self._shortest, self._weights)

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Take in tokens that became known; see ``Proposer.extend``."""
        history = self._history(request_id)
        for token_id in token_ids:
            history.append(token_id)

    def propose(self, request_id: str, count: int) -> list[int]:
        """Guess the tokens behind the known ones; see ``Proposer.propose``.

        Returns:
            ``count`` token ids if the last tokens have occurred before, else none. A guess that reaches the end of the
            known tokens goes on with its own beginning, as a text that repeats itself does.
        """
        return self._history(request_id).continuation(count)

    def forget(self, request_id: str) -> None:
        """Drop a request; see ``Proposer.forget``."""
        self._histories.pop(request_id, None)

    def _history(self, request_id: str) -> _History:
        try:
            return self._histories[request_id]
        except KeyError:
            raise KeyError(f"request {request_id!r} is not followed; start it first, or again after forget") from None


class _History:
    """The known tokens of one request, and where each of their n-grams last stood with a token behind it.

    The n-grams that end the text enter the index only when the next token comes. So a look-up of them never finds
    themselves, and every position found has at least one token to propose.

    Attributes:
        _latest: for each n, shortest first: key of an n-gram to the position right behind its latest occurrence.
        _suffix_keys: keys of the n-grams that end the text, shortest first, as far as the text is long enough.
    """

    def __init__(self, token_ids: Sequence[int], shortest: int, weights: list[int]) -> None:
        self._token_ids = list(token_ids)
        self._shortest = shortest
        self._weights = weights
        self._latest = self._index()
        self._suffix_keys = self._keys_at_end()

    def append(self, token_id: int) -> None:
        position = len(self._token_ids)
        for latest, key in zip(self._latest, self._suffix_keys, strict=False):
            latest[key] = position
        self._token_ids.append(token_id)
        self._suffix_keys = self._keys_at_end()

    def continuation(self, count: int) -> list[int]:
        if count < 1 or (position := self._match()) is None:
            return []
        guesses = self._token_ids[position : position + count]
        return guesses if len(guesses) == count else list(islice(cycle(guesses), count))

    def _match(self) -> int | None:
        """The position right behind the latest earlier occurrence of the longest n-gram that has one."""
        for offset in reversed(range(len(self._suffix_keys))):
            n = self._shortest + offset
            position = self._latest[offset].get(self._suffix_keys[offset])
            if position is not None and self._token_ids[position - n : position] == self._token_ids[-n:]:
                return position
        return None

    def _keys_at_end(self) -> list[int]:
        keys = []
        key = 0
        backwards = reversed(self._token_ids[-len(self._weights) :])
        for n, (token_id, weight) in enumerate(zip(backwards, self._weights, strict=False), start=1):
            key = (key + token_id * weight) & _MASK
            if n >= self._shortest:
                keys.append(key)
        return keys

    def _index(self) -> list[dict[int, int]]:
        """The index of all n-grams but those at the end; what ``_keys_at_end`` does, for all positions at once."""
        token_ids = np.array(self._token_ids[:-1], np.int64).astype(np.uint64)
        keys = np.zeros(len(token_ids) + 1, np.uint64)
        index: list[dict[int, int]] = []
        for n, weight in enumerate(self._weights, start=1):
            keys = keys[1:]
            keys = keys + token_ids[: len(keys)] * np.uint64(weight)
            if n >= self._shortest:
                index.append(dict(zip(keys.tolist(), range(n, n + len(keys)), strict=True)))
        return index
