"""What ``auto`` gains in an engine whose steps take made-up times: close to the best of all fixed numbers of guesses.

The times are those of a GPU: a step is quicker if it is handed over while the one before it runs, which one with
guesses cannot be, and a guess adds little to that. What ``auto`` computes between two such steps the device waits for.
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import takewhile
from types import FrameType
from typing import NamedTuple

import pytest

from parhelion.speculative import Drafting, Pace, Speculation, Speculator

MOST = 3
TOKENS = 128
SEEDS = range(4)


class StepTimes(NamedTuple):
    """Seconds of a step that is handed over ahead, what one that is not takes more, and what a guess adds to that."""

    ahead: float
    lost: float
    guess: float


TIMES = {
    1: StepTimes(2.70e-3, 0.73e-3, 78e-6),
    4: StepTimes(2.82e-3, 0.77e-3, 35e-6),
    16: StepTimes(3.29e-3, 0.88e-3, 19e-6),
    32: StepTimes(3.6e-3, 1.0e-3, 15e-6),
    64: StepTimes(3.5e-3, 1.1e-3, 25e-6),
}
"""By the number of requests; of 1 and 16 those of Qwen3 8B on an H200 (benchmarks/results/h200_speculation.json, as
times per token and mean accepted lengths make them), of others made up.
"""

CALL_S = 0.5e-6
"""Of a call of Python's, of which each is made once a step: as 187 calls of an ``auto`` took 83 to 115 us between two
steps 3 ms apart.
"""


class Endless:
    """Always has a guess."""

    def start(self, request_id: str, token_ids: Sequence[int]) -> None:
        pass

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        pass

    def propose(self, request_id: str, count: int) -> list[int]:
        return [0] * count

    def forget(self, request_id: str) -> None:
        pass


DRAFT_S = 0.4e-3
"""Of a pass of a draft model, of which there is one for each guess."""

Make = Callable[[], Speculator]


def ngrams() -> Speculator:
    return Speculation(Endless(), MOST, Pace())


def draft_model() -> Speculator:
    return Drafting(MOST, 0.1, Pace(), needs_states=True)


class Calls:
    """How many calls were made under ``counted``, of builtins too; always 0 if nobody wants to know."""

    def __init__(self, is_wanted: bool) -> None:
        self.num = 0
        self._is_wanted = is_wanted

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        self.num += event in ("call", "c_call")

    @contextmanager
    def counted(self) -> Iterator[None]:
        sys.setprofile(self._note if self._is_wanted else None)
        try:
            yield
        finally:
            sys.setprofile(None)


class Engine:
    """Serves requests, so many at once, of whose guesses so many are right; each pass that makes one takes so long.

    Who guesses is told what a step took while the next one runs, as by an engine's core. With ``call_s`` each call that
    is made between two steps takes so long; else none takes any time.
    """

    def __init__(self, num_requests: int, rate: float, seed: int, draft_s: float, call_s: float = 0.0) -> None:
        self._num_requests = num_requests
        self._rate = rate
        self._times = TIMES[num_requests]
        self._draft_s = draft_s
        self._call_s = call_s
        self._seed = seed
        self._chance = random.Random(seed)
        self._untold: Callable[[], None] = lambda: None
        self.calls = Calls(is_wanted=call_s > 0)

    def speed(self, guesser: Speculator | int, first: int, last: int) -> float:
        """Tokens a second with this one's guesses, or with always so many, in these rounds."""
        seconds = tokens = 0.0
        for number in range(last + 1):
            spent, kept = self._serve(guesser, number)
            if number >= first:
                seconds, tokens = seconds + spent, tokens + kept
        return tokens / seconds

    def _serve(self, guesser: Speculator | int, number: int) -> tuple[float, int]:
        """All requests of a round: seconds and tokens until the first of them has all of its tokens."""
        left = {f"{number}-{index}": TOKENS for index in range(self._num_requests)}
        # Which places' guesses are right does not depend on who guesses.
        luck = random.Random(1000 * number + self._seed)
        is_right = {name: [luck.random() < self._rate for _ in range(TOKENS)] for name in left}
        if isinstance(guesser, Speculator):
            guesser.begin_step(0, self._num_requests)  # their prompts
        spent, kept, was_resting = 0.0, 0, False
        while left:
            self.calls.num = 0
            is_whole, num_rows = len(left) == self._num_requests, len(left)
            guesses, is_ahead, was_resting = self._planned(guesser, left, was_resting)
            self._untold()
            num_guesses = sum(guesses.values())
            drafted_s = self._draft_s * max(guesses.values())
            gained = 0
            for name, guessed in guesses.items():
                place = TOKENS - left[name]
                right = len(list(takewhile(bool, is_right[name][place : place + guessed])))
                gained += right + 1
                left[name] -= right + 1
                if isinstance(guesser, Speculator):
                    with self.calls.counted():
                        if guessed:
                            guesser.learn(name, guessed, right)
                        if left[name] <= 0:
                            guesser.forget(name)
            left = {name: more for name, more in left.items() if more > 0}
            called_s = 0.0 if is_ahead else self._call_s * self.calls.num
            seconds = self._seconds(num_rows, num_guesses, is_ahead) + drafted_s + called_s
            if isinstance(guesser, Speculator):
                drafted = (num_rows + num_guesses, drafted_s) if drafted_s else None
                about = num_rows, num_rows + num_guesses, gained, seconds, drafted, is_ahead
                self._untold = partial(guesser.observe, *about)
            if is_whole:
                spent, kept = spent + seconds, kept + gained
        return spent, kept

    def _planned(
        self, guesser: Speculator | int, left: dict[str, int], was_resting: bool
    ) -> tuple[dict[str, int], bool, bool]:
        """Every request's guesses, whether the step is handed over ahead, and whether nobody guesses now."""
        if isinstance(guesser, int):
            return {name: min(guesser, more - 1) for name, more in left.items()}, guesser == 0, False
        is_ahead = was_resting and guesser.is_resting
        guesses = dict.fromkeys(left, 0)
        with self.calls.counted():
            guesser.begin_step(len(left), len(left))
            for name, more in left.items():
                # What is handed over ahead follows tokens that nobody knows yet, and nobody has room behind its last.
                if not is_ahead and more > 1:
                    guesses[name] = len(guesser.guesses(name, range(1000 - more), more - 1))
        return guesses, is_ahead, guesser.is_resting

    def _seconds(self, num_rows: int, num_guesses: int, is_ahead: bool) -> float:
        times = self._times
        alone = times.ahead * (0.85 + 0.15 * num_rows / self._num_requests)
        whole = alone + (0.0 if is_ahead else times.lost) + times.guess * num_guesses
        return whole * self._chance.uniform(0.97, 1.05)


def speeds(
    make: Make, num_requests: int, rate: float, first: int = 3, last: int | None = None, call_s: float = 0.0
) -> tuple[float, list[float]]:
    """Tokens a second with ``auto``, and with always none, one, two and so on, once something is known."""
    last = max(5, 31 // num_requests) if last is None else last
    draft_s = 0.0 if make is ngrams else DRAFT_S

    def mean(count: int | None) -> float:
        return statistics.mean(
            Engine(num_requests, rate, seed, draft_s, call_s).speed(make() if count is None else count, first, last)
            for seed in SEEDS
        )

    return mean(None), [mean(count) for count in range(MOST + 1)]


@pytest.mark.parametrize("make", [ngrams, draft_model])
@pytest.mark.parametrize("num_requests", [1, 16])
@pytest.mark.parametrize("rate", [0.3, 0.5, 0.7, 0.9, 1.0])
def test_auto_is_close_to_the_best_fixed_number_of_guesses(make: Make, num_requests: int, rate: float) -> None:
    auto, fixed = speeds(make, num_requests, rate)
    # What gains a few percent is hard to tell from what gains nothing.
    assert auto > (0.97 if max(fixed) > 1.1 * fixed[0] else 0.96) * max(fixed)


@pytest.mark.parametrize("rate", [0.7, 1.0])
def test_what_auto_computes_and_measures_costs_a_request_alone_little(rate: float) -> None:
    auto, fixed = speeds(ngrams, 1, rate, call_s=CALL_S)
    assert auto > 0.98 * max(fixed)


@pytest.mark.parametrize("num_requests", [1, 16])
def test_auto_gives_up_what_becomes_wrong_and_comes_back_to_what_becomes_right(num_requests: int) -> None:
    for seed in SEEDS:
        auto = ngrams()
        for rate, best in ((1.0, MOST), (0.0, 0), (1.0, MOST)):
            engine = Engine(num_requests, rate, seed, draft_s=0.0)
            assert engine.speed(auto, 2, 5) > 0.97 * engine.speed(best, 2, 5), f"{rate} right, seed {seed}"


@pytest.mark.parametrize("rate", [0.0, 0.9])
def test_what_many_requests_guesses_add_is_soon_found_out(rate: float) -> None:
    auto, fixed = speeds(ngrams, 64, rate, first=0, last=1)
    assert auto > 0.97 * max(fixed)


@pytest.mark.parametrize("make", [ngrams, draft_model])
@pytest.mark.parametrize("num_requests", [1, 4, 16, 32])
def test_auto_costs_little_where_nothing_is_right(make: Make, num_requests: int) -> None:
    auto, fixed = speeds(make, num_requests, 0.0)
    assert max(fixed) == fixed[0]
    assert auto > 0.98 * fixed[0]
