"""What ``auto`` gains in an engine whose steps take made-up times: close to the best of all fixed numbers of guesses.

The times are those of a GPU: a step is quicker if it is handed over while the one before it runs, which one with
guesses cannot be, and a guess adds little to that.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from parhelion.speculative import Pace, Speculation

AHEAD_S = 3.5e-3
LOST_S = 1.1e-3
GUESS_S = 25e-6
MOST = 3
TOKENS = 128


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


def gain(num_requests: int, rate: float) -> float:
    """Tokens a second, once much is known, over those without guesses."""
    chance = random.Random(5)
    pace = Pace()
    speculation = Speculation(Endless(), MOST, pace)
    plain_s = guessing_s = 0.0
    for number in range(max(6, 32 // num_requests)):
        left = {f"{number}-{index}": TOKENS for index in range(num_requests)}
        speculation.begin_step(0, num_requests)  # their prompts
        was_resting = False
        while left:
            num_rows = len(left)
            is_ahead = was_resting and speculation.is_resting
            speculation.begin_step(num_rows, num_rows)
            was_resting = speculation.is_resting
            guesses = {
                # What is handed over ahead follows tokens that nobody knows yet.
                name: 0 if is_ahead else len(speculation.guesses(name, range(1000 - more), more - 1))
                for name, more in left.items()
            }
            num_guesses = sum(guesses.values())
            alone_s = AHEAD_S * (0.85 + 0.15 * num_rows / num_requests)
            seconds = (alone_s + (0.0 if is_ahead else LOST_S) + GUESS_S * num_guesses) * chance.uniform(0.97, 1.05)
            kept = 0
            for name, guessed in guesses.items():
                right = next((index for index in range(guessed) if chance.random() >= rate), guessed)
                if guessed:
                    speculation.learn(name, guessed, right)
                kept += right + 1
                left[name] -= right + 1
                if left[name] <= 0:
                    speculation.forget(name)
                    del left[name]
            if number > 2:
                plain_s += alone_s * kept / num_rows
                guessing_s += seconds
            speculation.observe(num_rows, num_rows + num_guesses, kept, seconds, None, is_ahead)
    return plain_s / guessing_s


def best_fixed(num_requests: int, rate: float) -> float:
    """The same with the best number of guesses, always."""
    found = [1.0]
    for count in range(1, MOST + 1):
        tokens = sum(rate**guess for guess in range(count + 1))
        found.append(tokens * AHEAD_S / (AHEAD_S + LOST_S + GUESS_S * count * num_requests))
    return max(found)


@pytest.mark.parametrize(
    ("num_requests", "rate"), [(1, 0.3), (1, 0.5), (1, 0.9), (16, 0.3), (16, 0.5), (16, 0.7), (64, 0.9)]
)
def test_auto_is_close_to_the_best_fixed_number_of_guesses(num_requests: int, rate: float) -> None:
    assert gain(num_requests, rate) > 0.9 * best_fixed(num_requests, rate)


@pytest.mark.parametrize("num_requests", [1, 16])
def test_auto_costs_little_where_nothing_is_right(num_requests: int) -> None:
    assert gain(num_requests, 0.0) > 0.97
