"""What a step takes by its number of tokens, as it was measured."""

from __future__ import annotations

from bisect import bisect_left

_MEMORY = 0.8
"""What is left of an old observation after a new one of the same size."""

_GROWTH = 0.02
"""What a token more is taken to add to a step, as a share, before two sizes have been measured: little, so that the
second one is tried."""


class Pace:
    """Seconds of steps that decode, by their tokens: measured sizes, and straight lines between them."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._seconds: dict[int, float] = {}

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        size = _rounded(num_tokens)
        before = self._seconds.get(size)
        if before is None:
            self._sizes.insert(bisect_left(self._sizes, size), size)
            self._seconds[size] = seconds
        else:
            # A step that was held up says little: it may add no more than it takes at other times.
            self._seconds[size] = _MEMORY * before + (1 - _MEMORY) * min(seconds, 2 * before)

    @property
    def is_known(self) -> bool:
        """Whether any step has been measured."""
        return bool(self._sizes)

    def knows(self, num_tokens: int) -> bool:
        """Whether a step of so many tokens has been measured."""
        return _rounded(num_tokens) in self._seconds

    def seconds(self, num_tokens: int) -> float:
        """What a step of so many tokens would take; any number before the first observation."""
        if not self._sizes:
            return 1.0 + _GROWTH * num_tokens
        size = _rounded(num_tokens)
        at = bisect_left(self._sizes, size)
        if at < len(self._sizes) and self._sizes[at] == size:
            return self._seconds[size]
        if len(self._sizes) == 1:
            [known] = self._sizes
            return self._seconds[known] * max(0.5, 1 + _GROWTH * (size - known))
        low, high = self._sizes[max(0, min(at - 1, len(self._sizes) - 2)) :][:2]
        slope = max(0.0, (self._seconds[high] - self._seconds[low]) / (high - low))
        return max(self._seconds[low] + slope * (size - low), 0.5 * min(self._seconds.values()))


def _rounded(num_tokens: int) -> int:
    """To an eighth or so: sizes that are measured together."""
    step = max(1, 1 << max(0, num_tokens.bit_length() - 4))
    return -(-num_tokens // step) * step
