"""Penalties, biases and masks: what they do to the logits, against transformers and OpenAI's formula."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from .requests import add_request, random_logits, sample_rows

PROMPT = [3, 9, 9, 20, 41]
OUTPUT = [9, 7, 7, 7, 30, 55]


def adjusted(logits: torch.Tensor, **params: float) -> torch.Tensor:
    """The logits from which the second of three rows is drawn; its neighbours ask for nothing."""
    requests = [add_request(), add_request(prompt=PROMPT, **params), add_request(prompt=[1])]
    _, _, result = sample_rows(torch.cat((logits, logits, logits)), requests, [[4], OUTPUT, [2] * 9])
    assert torch.equal(result[0], logits[0])
    assert torch.equal(result[2], logits[0])
    return result[1]


def openai_penalties(logits: torch.Tensor, presence: float, frequency: float) -> torch.Tensor:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, with c the counts in the output alone."""
    result = logits[0].double().clone()
    for token_id, count in Counter(OUTPUT).items():
        result[token_id] -= count * frequency + presence
    return result


@pytest.mark.parametrize("penalty", [0.5, 1.1, 2.0, 100.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    logits = random_logits(1, 64)
    logits[0, 20] = float("-inf")
    seen = torch.tensor([PROMPT + OUTPUT])
    expected = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())[0]
    torch.testing.assert_close(adjusted(logits, repetition_penalty=penalty), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("presence", [-2.0, 0.0, 0.7])
@pytest.mark.parametrize("frequency", [-1.5, 0.0, 0.3, 2.0])
def test_presence_and_frequency_penalties_are_openais_and_count_the_output_alone(
    presence: float, frequency: float
) -> None:
    logits = random_logits(1, 64)
    result = adjusted(logits, presence_penalty=presence, frequency_penalty=frequency)
    torch.testing.assert_close(result.double(), openai_penalties(logits, presence, frequency), rtol=1e-6, atol=1e-5)


def test_all_penalties_together_repeat_first_and_subtract_then() -> None:
    logits = random_logits(1, 64)
    repeated = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([PROMPT + OUTPUT]), logits.clone())
    result = adjusted(logits, repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=0.9)
    torch.testing.assert_close(result.double(), openai_penalties(repeated, 0.4, 0.9), rtol=1e-6, atol=1e-5)


def test_token_zero_is_penalized_only_where_it_was_seen_and_not_for_unused_places() -> None:
    logits = torch.ones(2, 8)
    requests = [add_request(prompt=[5], repetition_penalty=2.0, presence_penalty=1.0)] * 2
    _, _, result = sample_rows(logits, requests, [[], [0, 0, 3]])
    assert result[0].tolist() == [1, 1, 1, 1, 1, 0.5, 1, 1]
    assert result[1].tolist() == [-0.5, 1, 1, -0.5, 1, 0.5, 1, 1]


def test_rows_of_different_penalties_do_not_touch_each_other() -> None:
    logits = random_logits(3, 64)
    kinds = ({"repetition_penalty": 1.5}, {"presence_penalty": 1.0}, {"frequency_penalty": 0.5})
    requests = [add_request(prompt=PROMPT[: i + 2], **kind) for i, kind in enumerate(kinds)]
    outputs = [OUTPUT[: i + 1] for i in range(3)]
    _, _, together = sample_rows(logits, requests, outputs)
    for row in range(3):
        _, _, alone = sample_rows(logits[row : row + 1], [requests[row]], [outputs[row]])
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_bias_of_a_hundred_forces_a_token_and_one_of_minus_a_hundred_bans_it(temperature: float) -> None:
    logits = random_logits(50, 64)
    forced = [add_request(seed=i, temperature=temperature, logit_bias={17: 100.0}) for i in range(50)]
    assert sample_rows(logits, forced)[0] == [17] * 50
    likeliest = logits.argmax(-1).tolist()
    banned = [
        add_request(seed=i, temperature=temperature, logit_bias={token: -100.0}) for i, token in enumerate(likeliest)
    ]
    drawn = sample_rows(logits, banned)[0]
    assert all(token != best for token, best in zip(drawn, likeliest, strict=True))


def test_biases_are_added_after_the_penalties_to_their_own_row_only() -> None:
    logits = random_logits(3, 64)
    requests = [
        add_request(),
        add_request(prompt=PROMPT, logit_bias={9: 1.5, 63: -2.0}, repetition_penalty=3.0),
        add_request(logit_bias={0: 5.0}),
    ]
    _, _, result = sample_rows(logits, requests)
    penalized = RepetitionPenaltyLogitsProcessor(3.0)(torch.tensor([PROMPT]), logits[1:2].clone())[0]
    penalized[9] += 1.5
    penalized[63] -= 2.0
    assert torch.equal(result[0], logits[0])
    torch.testing.assert_close(result[1], penalized)
    assert result[2, 0] == logits[2, 0] + 5.0
    assert torch.equal(result[2, 1:], logits[2, 1:])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_stop_ids_are_masked_until_min_tokens_are_there(temperature: float) -> None:
    logits = torch.zeros(8, 64)
    logits[:, 12], logits[:, 13], logits[:, 20] = 60.0, 50.0, 30.0
    request = add_request(temperature=temperature, min_tokens=5, stop_token_ids=(12, 13))
    tokens, _, _ = sample_rows(logits, [request] * 8, output_indices=range(8))
    assert tokens == [20] * 5 + [12] * 3


def test_a_mask_beats_a_bias_on_the_same_token() -> None:
    request = add_request(min_tokens=2, stop_token_ids=(4,), logit_bias={4: 100.0})
    logits = random_logits(2, 16)
    tokens, _, result = sample_rows(logits, [request] * 2, output_indices=[1, 2])
    assert result[0, 4] == float("-inf")
    assert tokens[0] != 4
    assert tokens[1] == 4


def test_min_tokens_without_stop_ids_changes_nothing() -> None:
    logits = random_logits(1, 16)
    assert torch.equal(sample_rows(logits, [add_request(min_tokens=9)])[2], logits)
