"""The n-gram proposer guesses what a scan of the whole text would, through starts, extensions and restarts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from parhelion.errors import ConfigError
from parhelion.speculative import NgramProposer, Proposer
from parhelion.speculative.ngram import MULTIPLIER


def propose(token_ids: Sequence[int], count: int, longest: int = 4, shortest: int = 2) -> list[int]:
    proposer = NgramProposer(longest, shortest)
    proposer.start("a", token_ids)
    return proposer.propose("a", count)


def propose_by_scanning(token_ids: list[int], count: int, longest: int, shortest: int) -> list[int]:
    for n in range(longest, shortest - 1, -1):
        for position in range(len(token_ids) - 1, n - 1, -1):
            if token_ids[position - n : position] == token_ids[-n:]:
                text = list(token_ids)
                for source in range(position, position + count):
                    text.append(text[source])
                return text[len(token_ids) :]
    return []


def test_what_followed_the_last_tokens_is_proposed():
    assert propose([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], 4) == [4, 5, 6, 7]


def test_no_more_than_the_count_is_proposed():
    text = [1, 2, 3, 4, 1, 2]
    assert [propose(text, count) for count in (-1, 0, 1, 2)] == [[], [], [3], [3, 4]]


@pytest.mark.parametrize("token_ids", [[], [1], [1, 2], [1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 2, 1, 3]])
def test_without_an_earlier_occurrence_nothing_is_proposed(token_ids):
    assert propose(token_ids, 4) == []


def test_a_single_token_is_a_match_only_if_the_shortest_allows():
    text = [1, 2, 3, 1]
    assert propose(text, 2, shortest=2) == []
    assert propose(text, 2, shortest=1) == [2, 3]


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_a_periodic_text_goes_on_past_its_end(period):
    text = [position % period for position in range(period + 4)]
    assert propose(text, 11) == [(len(text) + offset) % period for offset in range(11)]


def test_an_occurrence_that_overlaps_the_last_tokens_counts():
    assert propose([7, 7, 7], 3) == [7, 7, 7]


def test_the_latest_occurrence_is_preferred():
    assert propose([1, 2, 3, 1, 2, 4, 1, 2, 5, 1, 2], 1) == [5]


@pytest.mark.parametrize(("longest", "expected"), [(4, 50), (3, 50), (2, 60)])
def test_a_longer_match_is_preferred_to_a_later_one(longest, expected):
    assert propose([1, 2, 3, 50, 9, 2, 3, 60, 1, 2, 3], 1, longest=longest) == [expected]


def test_only_matches_of_an_allowed_length_are_used():
    text = [1, 2, 3, 50, 9, 2, 3, 60, 8, 2, 3]
    assert propose(text, 1, longest=3, shortest=3) == []
    assert propose(text, 1, longest=3, shortest=2) == [60]


def test_tokens_that_became_known_are_matched_and_found():
    proposer = NgramProposer()
    proposer.start("a", [1, 2, 3])
    proposer.extend("a", [4, 1, 2])
    assert proposer.propose("a", 2) == [3, 4]
    proposer.extend("a", [9])
    assert proposer.propose("a", 2) == []
    proposer.extend("a", [1, 2])
    assert proposer.propose("a", 2) == [9, 1]


def test_extending_by_nothing_changes_nothing():
    proposer = NgramProposer()
    proposer.start("a", [1, 2, 3, 1, 2])
    proposer.extend("a", [])
    assert proposer.propose("a", 1) == [3]


def test_proposing_changes_nothing():
    proposer = NgramProposer()
    proposer.start("a", [1, 2, 3, 4, 1, 2])
    assert [proposer.propose("a", 6) for _ in range(2)] == [[3, 4, 1, 2, 3, 4]] * 2


def test_the_callers_list_is_not_held():
    prompt = [1, 2, 3, 1, 2]
    proposer = NgramProposer()
    proposer.start("a", prompt)
    prompt[2] = 8
    proposer.extend("a", [7])
    assert prompt == [1, 2, 8, 1, 2]
    proposer.extend("a", [1, 2])
    assert proposer.propose("a", 1) == [7]


def test_a_request_that_starts_again_forgets_its_earlier_text():
    proposer = NgramProposer()
    proposer.start("a", [1, 2, 3, 1, 2])
    proposer.start("a", [5, 6, 7, 1, 2])
    assert proposer.propose("a", 1) == []
    proposer.extend("a", [5, 6])
    assert proposer.propose("a", 2) == [7, 1]


def test_requests_do_not_see_each_others_texts():
    proposer = NgramProposer()
    proposer.start("a", [1, 2, 3])
    proposer.start("b", [1, 2])
    assert proposer.propose("b", 1) == []
    proposer.extend("b", [4, 1, 2])
    proposer.extend("a", [1, 2])
    assert (proposer.propose("a", 1), proposer.propose("b", 1)) == ([3], [4])


def test_a_forgotten_request_is_unknown_and_may_start_again():
    proposer = NgramProposer()
    proposer.start("a", [1, 2, 3, 1, 2])
    proposer.forget("a")
    with pytest.raises(KeyError, match="'a' is not followed"):
        proposer.propose("a", 1)
    proposer.start("a", [1, 2])
    assert proposer.propose("a", 1) == []


def test_forgetting_an_unknown_request_is_ignored():
    NgramProposer().forget("nobody")


def test_an_unknown_request_is_named():
    proposer = NgramProposer()
    with pytest.raises(KeyError, match="'nobody' is not followed; start it first"):
        proposer.extend("nobody", [1])
    with pytest.raises(KeyError, match="'nobody' is not followed; start it first"):
        proposer.propose("nobody", 1)


def test_a_shortest_below_one_is_refused():
    with pytest.raises(ConfigError, match="has 0 tokens; it needs at least 1: choose shortest >= 1"):
        NgramProposer(4, 0)


def test_a_longest_below_the_shortest_is_refused():
    with pytest.raises(ConfigError, match="has 2 tokens and the shortest 3: choose longest >= 3 or shortest <= 2"):
        NgramProposer(2, 3)


@pytest.mark.parametrize("num_known", [4, 6])
def test_n_grams_that_share_a_key_are_told_apart(num_known):
    # The weight of a pair's first token is MULTIPLIER, so a second token that is larger by as much makes up for it.
    twin = MULTIPLIER - 2**64 + 5
    text = [1, 5, 7, 8, 0, twin]
    proposer = NgramProposer()
    proposer.start("a", text[:num_known])
    proposer.extend("a", text[num_known:])
    history = proposer._histories["a"]
    assert history._latest[0][history._suffix_keys[0]] == 2
    assert proposer.propose("a", 2) == []


def test_a_prompt_is_indexed_as_its_tokens_one_by_one_are():
    text = np.random.default_rng(0).integers(0, 200_000, 500).tolist() * 2
    at_once, one_by_one = NgramProposer(6, 1), NgramProposer(6, 1)
    at_once.start("a", text)
    one_by_one.start("a", [])
    one_by_one.extend("a", text)
    first, second = at_once._histories["a"], one_by_one._histories["a"]
    assert (first._latest, first._suffix_keys) == (second._latest, second._suffix_keys)


tokens = st.lists(st.integers(0, 2), max_size=30)


@given(
    stays=st.lists(st.tuples(tokens, st.lists(tokens, max_size=4)), min_size=1, max_size=3),
    shortest=st.integers(1, 4),
    more=st.integers(0, 4),
    count=st.integers(0, 12),
)
def test_proposals_equal_those_of_a_scan(stays, shortest, more, count):
    longest = shortest + more
    proposer: Proposer = NgramProposer(longest, shortest)
    for prompt, extensions in stays:
        text = list(prompt)
        proposer.start("a", prompt)
        assert proposer.propose("a", count) == propose_by_scanning(text, count, longest, shortest)
        for extension in extensions:
            text += extension
            proposer.extend("a", extension)
            assert proposer.propose("a", count) == propose_by_scanning(text, count, longest, shortest)


def test_the_package_loads_no_torch():
    program = "import sys, parhelion.speculative; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
