"""What a step takes by the requests in it and the guesses that it checks, as it was measured."""

from __future__ import annotations

from bisect import bisect_left

import msgspec

_MEMORY = 0.6
"""What is left of an old observation of steps without guesses after a new one of the same size: little, since attention
grows with the texts.
"""

_LONG_MEMORY = 0.95
"""The same for steps with guesses, of any size."""

_HOPE = 0.9988
"""What is left of what guesses are taken to add, behind each step in which none were made since none have paid."""

_GROWTH = 0.02
"""What a request more, or a guess for each of them, is taken to add to a step, as a share, before any was measured:
little, so that it is tried.
"""


class Costs(msgspec.Struct, frozen=True, gc=False):
    """Seconds of steps of so many requests.

    Attributes:
        plain_s: of one without guesses.
        lost_s: what one with guesses loses since it is not handed over while the one before it runs.
        first_s, each_s: what guesses add beyond that, however few they are and for each.
    """

    plain_s: float
    lost_s: float
    first_s: float
    each_s: float

    def added(self, num_guesses: int) -> float:
        """What so many guesses add to a step, that it is not handed over ahead included."""
        return self.lost_s + (self.first_s + self.each_s * num_guesses) if num_guesses else 0.0


class Pace:
    """Seconds of steps that decode: those of a step without guesses, and what guesses add to it.

    The former are measured sizes, and straight lines between them. A step without guesses may be handed over while the
    one before it runs, and is quicker then; steps with guesses cannot in general, and are compared with those. What
    guesses add beyond that is one straight line.

    Attributes:
        guesses_ahead: steps with guesses are handed over like those without.
        is_known: a step without guesses has been measured.
    """

    def __init__(self) -> None:
        self.guesses_ahead = False
        self.is_known = False
        self._ahead = _Line()
        self._serial = _Line()
        self._added = _Fit()
        self._warm: set[int] = set()
        # By the number of requests, as long as nothing new is observed.
        self._costs: dict[int, Costs] = {}

    def observe(self, num_rows: int, num_guesses: int, seconds: float, ahead: bool = False) -> None:
        """A step of so many requests, with so many guesses for them in all, took so long; ``ahead``: it was handed over
        while the one before it ran.
        """
        # A step that was held up says little. It may have taken twice as long as others of its size, and a guess no
        # longer than a step.
        if num_guesses == 0:
            self.is_known = True
            line = self._ahead if ahead else self._serial
            line.observe(num_rows, min(seconds, 2 * line.seconds(num_rows)) if line.knows(num_rows) else seconds)
        elif _rounded(num_guesses) not in self._warm:
            # The first step of a size may have made ready whatever serves it.
            self._warm.add(_rounded(num_guesses))
        elif self._plain.covers(num_rows):
            costs = self.of(num_rows)
            plain_s = costs.plain_s + costs.lost_s
            known_s = costs.plain_s + costs.added(num_guesses)
            most_s = 2 * known_s if self._added.is_known else plain_s * (1 + num_guesses)
            # What was measured long ago of steps without guesses may be above what one with them takes now.
            self._added.observe(num_guesses, max(0.0, min(seconds, most_s) - plain_s))
        self._costs.clear()

    def hope(self, num_steps: int) -> None:
        """No guesses are made for so many steps: what they add may be less by then, which only trying can tell."""
        self._added.scale(_HOPE**num_steps)
        self._costs.clear()

    def of(self, num_rows: int) -> Costs:
        """What steps of so many requests would take, as far as that is known now."""
        costs = self._costs.get(num_rows)
        if costs is None:
            plain_s = self._plain.seconds(num_rows)
            line = self._added.line if self._added.is_known else (0.0, plain_s * _GROWTH / num_rows)
            costs = self._costs[num_rows] = Costs(plain_s, self.lost(num_rows), *line)
        return costs

    def seconds(self, num_rows: int, num_guesses: int = 0) -> float:
        """What such a step would take; any number before the first observation."""
        costs = self.of(num_rows)
        return costs.plain_s + costs.added(num_guesses)

    def lost(self, num_rows: int) -> float:
        """What a step with guesses loses if it is not handed over while the one before it runs; 0 as long as that is
        not known.
        """
        if self.guesses_ahead or not (self._ahead.num_sizes and self._serial.num_sizes):
            return 0.0
        return max(0.0, self._serial.seconds(num_rows) - self._ahead.seconds(num_rows))

    @property
    def knows_guesses(self) -> bool:
        """What guesses add has been measured."""
        return self._added.is_known

    @property
    def _plain(self) -> _Line:
        return self._ahead if self._ahead.num_sizes else self._serial


class _Fit:
    """The straight line of least squares through what was observed lately, nowhere falling and nowhere below 0."""

    def __init__(self) -> None:
        # Sums of 1, x, y, x * x and x * y.
        self._sums = (0.0,) * 5

    @property
    def is_known(self) -> bool:
        return self._sums[0] > 0

    def observe(self, x: float, y: float) -> None:
        one, sum_x, sum_y, sum_xx, sum_xy = (_LONG_MEMORY * each for each in self._sums)
        self._sums = (one + 1, sum_x + x, sum_y + y, sum_xx + x * x, sum_xy + x * y)

    def scale(self, factor: float) -> None:
        one, sum_x, sum_y, sum_xx, sum_xy = self._sums
        self._sums = (one, sum_x, factor * sum_y, sum_xx, factor * sum_xy)

    @property
    def line(self) -> tuple[float, float]:
        """Where it starts and how it rises."""
        one, sum_x, sum_y, sum_xx, sum_xy = self._sums
        determinant = one * sum_xx - sum_x * sum_x
        through_zero = 0.0, sum_xy / sum_xx
        # Of one size alone the line goes through 0.
        if determinant <= 1e-6 * one * sum_xx:
            return through_zero
        slope = (one * sum_xy - sum_x * sum_y) / determinant
        start = (sum_y - slope * sum_x) / one
        if start < 0:
            return through_zero
        return (start, slope) if slope > 0 else (sum_y / one, 0.0)


class _Line:
    """Seconds by a size."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._sizes: list[int] = []

    @property
    def num_sizes(self) -> int:
        return len(self._sizes)

    def knows(self, size: int) -> bool:
        return _rounded(size) in self._seconds

    def covers(self, size: int) -> bool:
        """Whether it lies between two that are known, or is one."""
        return bool(self._sizes) and self._sizes[0] <= _rounded(size) <= self._sizes[-1]

    def observe(self, size: int, seconds: float) -> None:
        size = _rounded(size)
        before = self._seconds.get(size)
        if before is None:
            self._sizes.insert(bisect_left(self._sizes, size), size)
            self._seconds[size] = seconds
        else:
            self._seconds[size] = _MEMORY * before + (1 - _MEMORY) * seconds

    def seconds(self, size: int) -> float:
        if not self._sizes:
            return 1.0 + _GROWTH * size
        size = _rounded(size)
        at = bisect_left(self._sizes, size)
        if at < len(self._sizes) and self._sizes[at] == size:
            return self._seconds[size]
        if len(self._sizes) == 1:
            [known] = self._sizes
            return self._seconds[known] * max(0.5, 1 + _GROWTH * (size - known))
        low, high = self._sizes[max(0, min(at - 1, len(self._sizes) - 2)) :][:2]
        slope = max(0.0, (self._seconds[high] - self._seconds[low]) / (high - low))
        return max(self._seconds[low] + slope * (size - low), 0.5 * min(self._seconds.values()))


def _rounded(size: int) -> int:
    """To an eighth or so: sizes that are measured together."""
    step = max(1, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step
