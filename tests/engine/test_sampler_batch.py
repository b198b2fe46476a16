"""A request gets the same token whatever else is in the batch; greedy choice; log-probabilities."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from parhelion.engine.messages import AddRequest
from parhelion.types import MAX_LOGPROBS

from .requests import add_request, random_logits, sample_rows

VOCAB = 1500

KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.2, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.99, "logprobs": 2},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "top_k": 1200, "top_p": 0.95},
    {"temperature": 0.8, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": -0.5},
    {"temperature": 1.0, "logit_bias": {7: 6.0, 8: -100.0}},
    {"temperature": 1.0, "min_tokens": 8},
    {"temperature": 0.0, "logprobs": 5, "repetition_penalty": 2.0},
)


def mixed_batch(count: int) -> tuple[torch.Tensor, list[AddRequest], list[list[int]]]:
    rng = random.Random(5)
    requests = [
        add_request(
            f"r{i}",
            [rng.randrange(VOCAB) for _ in range(rng.randint(1, 12))],
            seed=rng.getrandbits(64),
            stop_token_ids=(1, 9),
            **KINDS[i % len(KINDS)],
        )
        for i in range(count)
    ]
    outputs = [[rng.randrange(VOCAB) for _ in range(rng.randint(0, 12))] for _ in range(count)]
    return random_logits(count, VOCAB, scale=1.5), requests, outputs


def test_each_row_gets_the_same_token_alone_and_in_a_batch_of_two_hundred_in_any_order() -> None:
    logits, requests, outputs = mixed_batch(200)
    together, _, _ = sample_rows(logits, requests, outputs)
    alone = [sample_rows(logits[i : i + 1], [requests[i]], [outputs[i]])[0][0] for i in range(200)]
    assert alone == together
    for seed in range(3):
        order = random.Random(seed).sample(range(200), 77)
        picked, _, _ = sample_rows(logits[order], [requests[i] for i in order], [outputs[i] for i in order])
        assert picked == [together[i] for i in order]


def test_the_seed_and_the_index_decide() -> None:
    logits = random_logits(1, VOCAB, scale=0.1).expand(64, -1)
    by_seed, _, _ = sample_rows(logits, [add_request(seed=seed) for seed in range(64)])
    by_index, _, _ = sample_rows(logits, [add_request(seed=0)] * 64, output_indices=range(64))
    again, _, _ = sample_rows(logits, [add_request(seed=0)] * 64, output_indices=[9] * 64)
    assert len(set(by_seed)) > 50
    assert len(set(by_index)) > 50
    assert set(again) == {by_index[9]}


@pytest.mark.parametrize("seed", [-1, -(1 << 63), (1 << 64) - 1])
def test_any_seed_of_sixty_four_bits_works(seed: int) -> None:
    tokens, _, _ = sample_rows(random_logits(1, 50), [add_request(seed=seed)])
    assert 0 <= tokens[0] < 50


def test_a_slot_taken_over_keeps_nothing_of_its_last_request() -> None:
    import numpy as np

    from parhelion.engine.sampler import sample
    from parhelion.engine.sampling_state import SamplingState

    state = SamplingState(1)
    state.set(0, add_request(logit_bias={3: 100.0}, min_tokens=5, stop_token_ids=(4,), logprobs=3, top_k=2))
    state.set(0, add_request(temperature=0.0))
    logits = random_logits(1, 20)
    logits[0, 4] = 50.0
    untouched = logits.clone()
    tokens, logprobs = sample(logits, np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros((1, 9), np.int32), state)
    assert tokens.tolist() == [4]
    assert logprobs == [None]
    assert torch.equal(logits, untouched)


@pytest.mark.parametrize("rows", [1, 200])
def test_greedy_is_the_likeliest_token_whatever_the_filters(rows: int) -> None:
    logits = random_logits(rows, VOCAB)
    requests = [add_request(seed=i, temperature=0.0, top_k=5, top_p=0.5, min_p=0.1) for i in range(rows)]
    assert sample_rows(logits, requests)[0] == logits.argmax(-1).tolist()


def test_greedy_rows_between_drawn_ones_stay_greedy() -> None:
    logits = random_logits(40, VOCAB, scale=0.1)
    requests = [add_request(seed=i, temperature=float(i % 2)) for i in range(40)]
    tokens, _, _ = sample_rows(logits, requests)
    matches = [token == best for token, best in zip(tokens, logits.argmax(-1).tolist(), strict=True)]
    assert all(matches[::2])
    assert not any(matches[1::2])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_logprobs_are_those_of_the_untouched_logits(temperature: float) -> None:
    logits, count = random_logits(6, VOCAB), 4
    changes: dict[str, Any] = {"repetition_penalty": 1.8, "presence_penalty": 1.0, "logit_bias": {11: 40.0}}
    requests = [
        add_request(seed=i, temperature=temperature, top_k=3, logprobs=count, **(changes if i % 2 else {}))
        for i in range(6)
    ]
    tokens, items, _ = sample_rows(logits, requests, [[i, 2 * i] for i in range(6)])
    expected = logits.double().log_softmax(-1)
    for row, (token, item) in enumerate(zip(tokens, items, strict=True)):
        assert item is not None
        assert item.token_id == token
        assert item.logprob == pytest.approx(float(expected[row, token]), abs=1e-5)
        assert item.rank == 1 + int((expected[row] > expected[row, token]).sum())
        top = expected[row].topk(count)
        assert item.top_ids == top.indices.tolist()
        assert item.top_logprobs == pytest.approx(top.values.tolist(), abs=1e-5)
    assert tokens[1::2] == [11] * 3, "the bias decides what is drawn"
    assert any(item is not None and item.rank > 1 for item in items[1::2]), "and does not show in the rank"


def test_only_rows_that_ask_get_logprobs_and_each_as_many_as_it_asks_for() -> None:
    wanted = [None, 0, 3, None, MAX_LOGPROBS, 1]
    logits = random_logits(6, VOCAB)
    _, items, _ = sample_rows(logits, [add_request(seed=i, logprobs=count) for i, count in enumerate(wanted)])
    assert [None if item is None else len(item.top_ids) for item in items] == wanted
    assert [None if item is None else len(item.top_logprobs) for item in items] == wanted


def test_asking_for_no_alternatives_gives_the_token_alone() -> None:
    _, items, _ = sample_rows(random_logits(2, VOCAB), [add_request(seed=i, logprobs=0) for i in range(2)])
    assert all(item is not None and item.top_ids == [] and item.logprob < 0 for item in items)


def test_a_vocabulary_smaller_than_the_alternatives_asked_for_gives_all_of_it() -> None:
    _, items, _ = sample_rows(random_logits(1, 7), [add_request(logprobs=MAX_LOGPROBS)])
    assert items[0] is not None
    assert sorted(items[0].top_ids) == list(range(7))
    assert items[0].top_logprobs == sorted(items[0].top_logprobs, reverse=True)


def test_logits_of_minus_infinity_leave_the_other_logprobs_whole() -> None:
    logits = random_logits(1, 10)
    logits[0, 3:] = float("-inf")
    tokens, items, _ = sample_rows(logits, [add_request(logprobs=3)])
    assert tokens[0] < 3
    assert items[0] is not None
    assert sorted(items[0].top_ids) == [0, 1, 2]
    assert torch.tensor(items[0].top_logprobs).exp().sum() == pytest.approx(1.0)
