"""How many guesses a draft model makes: as many as were asked for, or as pay."""

from __future__ import annotations

import pytest

from parhelion.scheduler import DRAFTED
from parhelion.speculative import Drafting, Pace


def paced(seconds: dict[tuple[int, int], float]) -> Pace:
    """What steps of so many requests and so many guesses take."""
    pace = Pace()
    for (num_rows, num_guesses), each in seconds.items():
        for _ in range(2):  # the first step of a size does not count
            pace.observe(num_rows, num_guesses, each)
    return pace


def count(drafting: Drafting, num_rows: int = 1, most: int = 99) -> int:
    drafting.begin_step(num_rows, num_rows)
    guesses = drafting.guesses("a", [1, 2], most)
    assert set(guesses) <= {DRAFTED}
    return len(guesses)


def test_without_a_pace_there_are_as_many_as_there_is_room_for_but_now_and_then_none() -> None:
    drafting = Drafting(4, cost=2.0)
    counts = [count(drafting) for _ in range(256)]
    # Sooner the first time. The second of two in a row can be handed over ahead.
    assert [step for step, each in enumerate(counts) if each == 0] == [61, 62, 189, 190]
    assert set(counts) == {4, 0}
    assert drafting.follows
    assert not drafting.is_resting
    assert count(drafting, most=3) == 3


@pytest.mark.parametrize(
    ("cost", "seconds", "right", "guesses"),
    [
        pytest.param(0.05, {(1, 0): 1.0, (1, 5): 1.0}, True, 5, id="cheap and right"),
        pytest.param(0.05, {(1, 0): 1.0, (1, 5): 1.0}, False, 0, id="cheap and wrong"),
        pytest.param(0.9, {(1, 0): 1.0, (1, 5): 1.0}, True, 5, id="dear and always right"),
        pytest.param(1.1, {(1, 0): 1.0, (1, 5): 1.0}, True, 0, id="dearer than the target"),
        pytest.param(0.05, {(1, 0): 1.0, (1, 5): 6.0}, True, 0, id="tokens that cost a step each"),
    ],
)
def test_with_a_pace_there_are_as_many_as_pay(
    cost: float, seconds: dict[tuple[int, int], float], right: bool, guesses: int
) -> None:
    drafting = Drafting(5, cost, paced(seconds))
    for _ in range(300):
        drafting.learn("a", 5, 5 if right else 0)
    assert count(drafting) == guesses
    assert drafting.follows == bool(guesses)
    assert drafting.is_resting == (guesses == 0)


def test_with_a_pace_the_first_step_makes_none_so_that_there_is_something_to_compare_with() -> None:
    drafting = Drafting(4, cost=0.1, pace=Pace())
    assert count(drafting) == 0
    assert drafting.follows
    drafting.observe(1, 1, 1, 0.1)
    assert count(drafting) == 4


def test_what_the_draft_model_takes_is_measured_and_counts_more_than_its_size() -> None:
    drafting = Drafting(5, 0.05, paced({(1, 0): 1.0, (1, 5): 1.0}))
    at_first = count(drafting)
    for _ in range(40):
        drafting.observe(1, 6, 3, 4.5, (5, 3.5))
    assert count(drafting) < at_first
    # A step in which it caught up on a prompt does not count.
    other = Drafting(5, 0.05, paced({(1, 0): 1.0, (1, 5): 1.0}))
    for _ in range(40):
        other.observe(1, 6, 3, 4.5, (400, 3.5))
    assert count(other) == at_first


def test_it_stops_under_load_and_comes_back_when_that_falls() -> None:
    drafting = Drafting(3, 0.1, paced({(1, 0): 1.0, (32, 0): 1.3, (1, 3): 1.05, (32, 32): 2.6, (32, 96): 5.2}))
    assert count(drafting, 1) == 3
    assert count(drafting, 32) == 0
    assert count(drafting, 1) == 3


def test_requests_that_end_while_nobody_guesses_let_it_hope_again() -> None:
    drafting = Drafting(3, 0.3, paced({(1, 0): 1.0, (1, 3): 1.0}))
    for _ in range(300):
        drafting.learn("a", 3, 0)
    assert count(drafting) == 0
    for number in range(200):
        drafting.forget(str(number))
    assert count(drafting) > 0


def test_the_gain_compares_steps_with_guesses_with_those_without() -> None:
    drafting = Drafting(3, 0.1)
    assert drafting.gain == 1.0
    drafting.observe(2, 8, 6, 2.0, (6, 0.5))
    assert drafting.gain == 1.0  # nothing is known of steps without
    drafting.observe(2, 2, 2, 1.0)
    drafting.observe(2, 8, 6, 2.0, (6, 0.5))
    assert drafting.gain == pytest.approx(1.5)


def test_guesses_on_a_device_lose_nothing_to_steps_that_are_planned_ahead() -> None:
    """Others are compared with what steps take that are not, which plain ones are spared."""
    counts = []
    for on_device in (False, True):
        pace = Pace()
        drafting = Drafting(3, 0.01, pace, on_device=on_device)
        for _ in range(4):
            pace.observe(1, 0, 4.0)
            pace.observe(1, 0, 1.0, ahead=True)
            pace.observe(1, 3, 1.1 if on_device else 4.1)
            drafting.learn("a", 3, 2)
        assert pace.lost(1) == (0 if on_device else pytest.approx(3.0))
        assert drafting.plans_ahead == on_device
        counts.append(count(drafting))
        assert drafting.plans_ahead != drafting.needs_tokens or drafting.is_resting
    assert counts == [0, 3]


@pytest.mark.parametrize(("batch", "most_steps"), [(1, 8), (16, 2)])
def test_what_is_known_is_given_up_when_wrong_guesses_in_a_row_contradict_it(batch: int, most_steps: int) -> None:
    drafting = Drafting(3, 0.1, paced({(batch, 0): 1.0, (batch, 3 * batch): 1.05}))

    def check(accepted: int, steps: int) -> None:
        for _ in range(steps):
            for number in range(batch):
                drafting.learn(str(number), 3, accepted)

    check(3, 100)
    # As may happen by chance.
    check(0, 2 if batch == 1 else 0)
    assert count(drafting, batch) == 3
    check(3, 20)
    check(0, most_steps)
    assert count(drafting, batch) == 0


def test_guesses_that_are_often_wrong_as_they_were_before_contradict_nothing() -> None:
    drafting = Drafting(3, 0.05, paced({(1, 0): 1.0, (1, 3): 1.05}))
    for step in range(400):
        # Two of three in a row are wrong.
        drafting.learn("a", 3, 1 if step % 3 == 0 else 0)
    assert drafting.acceptance.overall.first == pytest.approx(1 / 3, abs=0.05)
    assert count(drafting) > 0
