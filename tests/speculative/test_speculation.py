"""How many guesses are asked for: all that there are, or only those that pay."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, pairwise

import pytest

from parhelion.speculative import NgramProposer, Pace, Speculation
from parhelion.speculative.acceptance import Acceptance, Shares


class Endless:
    """Guesses zeros, and notes what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, list[int]]] = []

    def start(self, request_id: str, token_ids: Sequence[int]) -> None:
        self.told.append(("start", request_id, list(token_ids)))

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        self.told.append(("extend", request_id, list(token_ids)))

    def propose(self, request_id: str, count: int) -> list[int]:
        return [0] * count

    def forget(self, request_id: str) -> None:
        self.told.append(("forget", request_id, []))


def paced(seconds: dict[tuple[int, int], float]) -> Pace:
    """What steps of so many requests and so many guesses take."""
    pace = Pace()
    for (num_rows, num_guesses), each in seconds.items():
        for _ in range(2):  # the first step of a size does not count
            pace.observe(num_rows, num_guesses, each)
    return pace


def test_a_proposer_is_told_of_known_tokens_once_and_of_the_end() -> None:
    proposer = Endless()
    speculation = Speculation(proposer, 3)
    speculation.begin_step(1, 1)
    assert speculation.guesses("a", [1, 2], 9) == [0, 0, 0]
    assert speculation.guesses("a", [1, 2], 2) == [0, 0]
    speculation.guesses("a", [1, 2, 3, 4], 9)
    speculation.forget("a")
    speculation.guesses("a", [5], 9)
    assert proposer.told == [
        ("start", "a", [1, 2]), ("extend", "a", [3, 4]), ("forget", "a", []), ("start", "a", [5])
    ]  # fmt: skip


def test_without_a_pace_there_are_as_many_guesses_as_there_is_room_for() -> None:
    speculation = Speculation(NgramProposer(), 4)
    speculation.begin_step(1, 1)
    text = [1, 2, 3, 1, 2, 3, 1, 2]
    assert speculation.guesses("a", text, 9) == [3, 1, 2, 3]
    assert speculation.guesses("a", text, 2) == [3, 1]
    assert speculation.guesses("b", [1, 2, 3], 9) == []


@pytest.mark.parametrize(
    ("seconds", "right", "guesses"),
    [
        pytest.param({(1, 0): 1.0, (1, 5): 1.0}, True, 5, id="tokens that cost nothing"),
        pytest.param({(1, 0): 1.0, (1, 5): 6.0}, True, 0, id="tokens that cost a step each"),
        pytest.param({(1, 0): 1.0, (1, 5): 6.0}, False, 0, id="and are wrong"),
        pytest.param({(1, 0): 1.0, (1, 5): 1.0}, False, 0, id="wrong ones"),
        pytest.param({(1, 0): 1.0, (1, 1): 2.5, (1, 5): 2.6}, True, 5, id="only the first one is dear"),
    ],
)
def test_with_a_pace_only_what_pays_is_guessed(
    seconds: dict[tuple[int, int], float], right: bool, guesses: int
) -> None:
    speculation = Speculation(Endless(), 5, paced(seconds))
    for _ in range(60):
        speculation.learn("a", 5, 5 if right else 0)
    speculation.begin_step(1, 1)
    assert len(speculation.guesses("a", [1], 9)) == guesses


def test_one_row_of_many_pays_for_itself_alone() -> None:
    # In a batch a token more costs little, and one row's guesses must pay for that.
    speculation = Speculation(Endless(), 5, paced({(8, 0): 1.0, (8, 8): 1.1, (8, 40): 1.5}))
    for _ in range(60):
        speculation.learn("good", 5, 5)
        speculation.learn("bad", 5, 0)
    speculation.begin_step(8, 8)
    assert len(speculation.guesses("good", [1], 9)) == 5
    assert speculation.guesses("bad", [1], 9) == []


def test_while_guesses_pay_steps_without_are_measured_now_and_then() -> None:
    speculation = Speculation(Endless(), 5, paced({(2, 0): 1.0, (2, 10): 1.1}))
    counts, resting = [], []
    for _ in range(4 + 2 + 128 + 2 + 256 + 2 + 512 + 2 + 512 + 2 + 10):
        speculation.begin_step(2, 2)
        resting.append(speculation.is_resting)
        counts.append(sum(len(speculation.guesses(name, [1], 9)) for name in "ab"))
    assert set(counts) == {0, 10}
    assert [count == 0 for count in counts] == resting  # so that the second of them is handed over ahead
    # Soon the first time, since what a step gains that is handed over ahead is not known before; then more seldom.
    between = [[False] * num + [True] * 2 for num in (4, 128, 256, 512, 512)]
    assert resting == [each for steps in between for each in steps] + [False] * 10


def test_steps_without_guesses_are_measured_sooner_again_once_they_take_longer() -> None:
    speculation = Speculation(Endless(), 5, paced({(1, 0): 1.0, (1, 5): 1.1}))
    rests = []
    for step in range(1400):
        speculation.begin_step(1, 1)
        if speculation.is_resting:
            speculation.observe(1, 1, 1, 1.0 if step < 700 else 1.5)
            rests.append(step)
        speculation.guesses("a", [1], 9)
    assert [step - before - 2 for before, step in pairwise(rests[::2])] == [128, 256, 512, 128, 128]


def test_before_anything_is_known_steps_without_guesses_are_measured_both_ways_and_then_a_few_guesses() -> None:
    speculation = Speculation(Endless(), 5, Pace())
    speculation.begin_step(0, 2)
    assert not speculation.is_resting  # only prompts
    counts = []
    for step in range(8):
        was_resting = speculation.is_resting
        speculation.begin_step(2, 2)
        is_ahead = was_resting and step > 0
        num_guesses = 0 if is_ahead else sum(len(speculation.guesses(name, [1], 9)) for name in "ab")
        speculation.observe(2, 2 + num_guesses, 2, 1.0 if is_ahead else 1.2, None, is_ahead)
        counts.append((is_ahead, num_guesses))
    assert counts[:3] == [(False, 0), (True, 0), (True, 0)]
    assert speculation.pace.lost(2) == pytest.approx(0.2)
    # The first step with guesses may have made things ready, so its time does not count.
    assert counts[3:] == [(False, 4), (False, 4), (False, 10), (False, 10), (False, 10)]


def ahead(seconds: float, serial: float, num_rows: int) -> Pace:
    """Steps without guesses take so long if they are handed over while others run, and so long if not."""
    pace = Pace()
    pace.observe(num_rows, 0, serial)
    pace.observe(num_rows, 0, seconds, ahead=True)
    return pace


def test_guesses_are_compared_with_steps_that_are_handed_over_ahead() -> None:
    pace = ahead(1.0, 1.3, num_rows=1)
    for _ in range(2):
        pace.observe(1, 2, 1.5)
    assert pace.seconds(1) == 1.0
    assert pace.seconds(1, 2) == pytest.approx(1.5)
    assert pace.lost(1) == pytest.approx(0.3)
    for right, guesses in ((0, 0), (2, 2)):
        speculation = Speculation(Endless(), 2, pace)
        for _ in range(60):
            speculation.learn("a", 2, right)
        speculation.begin_step(1, 1)
        assert len(speculation.guesses("a", [1], 9)) == guesses


def test_what_the_first_guess_of_a_step_costs_all_requests_bear() -> None:
    # A step with guesses costs half a step more, however few they are: too much for one request's, not for sixteen's.
    pace = ahead(1.0, 1.5, num_rows=16)
    for _ in range(2):
        pace.observe(16, 16, 1.5)
    speculation = Speculation(Endless(), 1, pace)
    names = [str(number) for number in range(16)]
    for name in names:
        for _ in range(60):
            speculation.learn(name, 1, 1)
    speculation.begin_step(16, 16)
    assert sum(len(speculation.guesses(name, [1], 9)) for name in names) == 16
    speculation.begin_step(16, 16)
    assert not speculation.is_resting
    assert len(speculation.guesses("0", [1], 9)) == 1  # the only one that has any
    speculation.begin_step(16, 16)
    assert speculation.is_resting
    speculation.begin_step(8, 8)
    assert not speculation.is_resting  # half of the requests are gone


def test_asking_whoever_has_no_guesses_ends_where_it_costs() -> None:
    costly = Speculation(NgramProposer(), 2, ahead(1.0, 1.3, num_rows=1))
    free = Speculation(NgramProposer(), 2, ahead(1.0, 1.01, num_rows=1))
    for speculation, rests in ((costly, True), (free, False)):
        speculation.begin_step(1, 1)
        assert speculation.guesses("a", [1, 2, 3], 9) == []
        speculation.begin_step(1, 1)
        assert speculation.is_resting == rests


def test_one_of_many_need_not_speed_up_all_of_them() -> None:
    speculation = Speculation(Endless(), 5, paced({(64, 0): 1.0, (64, 5): 1.01}))
    speculation.begin_step(64, 64)
    assert len(speculation.guesses("a", [1], 9)) == 5


def test_who_guessed_wrong_may_try_again_now_and_then() -> None:
    speculation = Speculation(Endless(), 5, paced({(1, 0): 1.0, (1, 5): 2.0}))
    for _ in range(60):
        speculation.learn("a", 5, 0)
    counts = []
    for _ in range(400):
        speculation.begin_step(1, 1)
        counts.append(len(speculation.guesses("a", [1], 9)))
    assert 0 < sum(counts) < 6
    assert max(counts) == 1


def test_once_nobody_pays_nobody_is_asked_for_a_while() -> None:
    proposer = Endless()
    speculation = Speculation(proposer, 5, paced({(1, 0): 1.0, (1, 5): 6.0}))
    resting = []
    for step in range(280):
        speculation.begin_step(1, 1)
        resting.append(speculation.is_resting)
        guesses = speculation.guesses("a", list(range(step + 1)), 9)
        assert len(guesses) == (step == 1 + 48 + 96 + 128)
    # Longer each time. What the answer would be is known, but the fourth time it may try again.
    assert resting == [False] + [True] * (48 + 96 + 128) + [False] + [True] * 6
    told = [tokens for _, _, tokens in proposer.told]
    assert [token for tokens in told for token in tokens] == list(range(274))


def test_a_rest_ends_for_a_request_that_was_not_asked_yet() -> None:
    speculation = Speculation(Endless(), 5, paced({(3, 0): 1.0, (3, 15): 1.3}))
    for name in "ab":
        for _ in range(60):
            speculation.learn(name, 5, 0)
    asked = []
    for step in range(100):
        names = "ab" if step < 30 else "abc"
        speculation.begin_step(len(names), len(names))
        asked.append({name for name in names if speculation.guesses(name, [1], 9)})
    assert asked[:49] == [set()] * 49
    assert asked[49] == {"c"}


def test_a_request_is_given_up_later_where_others_guessed_right() -> None:
    alone, among = Acceptance(), Acceptance()
    for _ in range(100):
        among.learn("other", 1, 1)
        alone.learn("other", 1, 0)
    for acceptance in (alone, among):
        for _ in range(3):
            acceptance.learn("a", 1, 0)
    assert alone.of("a").first < 0.2
    assert among.of("a").first > 0.5


def test_a_pace_is_a_line_between_what_was_measured() -> None:
    pace = paced({(1, 0): 1.0, (5, 0): 2.0, (9, 0): 2.0})
    assert [pace.seconds(n) for n in (1, 3, 5, 7, 9)] == [1.0, 1.5, 2.0, 2.0, 2.0]
    assert pace.seconds(15) == pytest.approx(2.0)
    assert paced({(4, 0): 1.0}).seconds(5) == pytest.approx(1.02)
    assert Pace().seconds(2) > Pace().seconds(1)


def test_what_guesses_add_is_measured_apart_from_what_a_step_takes_without() -> None:
    pace = paced({(1, 0): 1.0, (9, 0): 3.0})
    assert pace.seconds(1, 5) == pytest.approx(1.1)  # little, before any was measured
    for _ in range(2):
        pace.observe(1, 4, 1.4)
    assert pace.seconds(1, 4) == pytest.approx(1.4)
    assert pace.seconds(9, 4) == pytest.approx(3.4)
    assert pace.seconds(9, 2) == pytest.approx(3.2)
    assert pace.seconds(9, 8) == pytest.approx(3.8)


def test_what_guesses_add_is_a_line_that_neither_falls_nor_begins_below_nothing() -> None:
    dear_at_first, falling, too_steep = (paced({(1, 0): 1.0} | each) for each in (
        {(1, 1): 1.5, (1, 9): 1.9}, {(1, 2): 1.5, (1, 8): 1.1}, {(1, 4): 1.1, (1, 8): 1.9}
    ))  # fmt: skip
    assert [dear_at_first.of(1).added(n) for n in (0, 1, 5, 17)] == pytest.approx([0.0, 0.5, 0.7, 2.3 - 1.0])
    assert falling.of(1).added(2) == pytest.approx(falling.of(1).added(99), abs=0.01)
    assert 0 < too_steep.of(1).added(1) < too_steep.of(1).added(4) < too_steep.of(1).added(8)


def test_what_was_held_up_or_is_of_unknown_steps_counts_little() -> None:
    pace = paced({(1, 0): 1.0, (9, 0): 3.0, (1, 4): 1.4})
    pace.observe(1, 6, 2.0)  # the first one made things ready, perhaps
    pace.observe(12, 4, 99.0)  # nobody knows what so many requests take without
    assert pace.seconds(1, 4) == pytest.approx(1.4)
    pace.observe(1, 4, 100.0)  # twice as long as usual, at most
    assert pace.seconds(1, 4) < 2.2
    pace.observe(9, 4, 0.1)  # less than without
    assert pace.seconds(1, 4) < 1.8


def test_what_seemed_too_dear_is_tried_again_after_a_long_while() -> None:
    speculation = Speculation(Endless(), 5, paced({(1, 0): 1.0, (1, 5): 2.0}))
    for _ in range(5):
        speculation.pace.observe(1, 1, 9.0)
        speculation.pace.observe(1, 5, 20.0)
    counts = []
    for _ in range(2000):
        speculation.begin_step(1, 1)
        counts.append(len(speculation.guesses("a", [1], 9)))
    assert sum(counts[:20]) == 0
    assert sum(counts) > 0


def test_a_guess_behind_a_right_one_is_right_more_often() -> None:
    acceptance = Acceptance()
    for _ in range(400):
        acceptance.learn("a", 4, 3)
        acceptance.learn("a", 4, 0)
    chances = list(islice(acceptance.of("a").chances(), 4))
    assert chances[0] == pytest.approx(0.5, abs=0.06)
    assert chances[1] / chances[0] == pytest.approx(2 / 3, abs=0.1)
    known, hoped = acceptance.of("b"), Shares()
    assert known.first == (acceptance.overall.first + hoped.first) / 2  # between others' and what one may hope for
    assert known.times == 0
    acceptance.forget("a")
    assert acceptance.of("a") == known


def test_what_was_only_hoped_for_is_soon_forgotten() -> None:
    acceptance = Acceptance()
    assert acceptance.of("a") == Shares()
    firsts = []
    for _ in range(4):
        acceptance.learn("a", 1, 0)
        firsts.append(acceptance.of("a").first)
    assert firsts == pytest.approx([0.6 * 2 / 3, 0.6 * 2 / 4, 0.6 * 2 / 5, 0.6 * 2 / 6])


def test_a_pace_follows_what_is_measured_and_no_single_hiccup() -> None:
    pace = paced({(1, 0): 1.0})
    pace.observe(1, 0, 100.0)
    assert pace.seconds(1) < 1.5
    for _ in range(40):
        pace.observe(1, 0, 2.0)
    assert pace.seconds(1) == pytest.approx(2.0, rel=0.01)
