"""What a step is told of its requests all at once is what each of them needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from parhelion.distributed.sampling import MOST_CANDIDATES, Among
from parhelion.engine.sampling_state import CHOOSES_ON_HOST, DRAWS, TELLS_PROMPT, SamplingState
from tests.engine.requests import add_request

ASKED: list[tuple[dict[str, Any], int]] = [
    ({"temperature": 0.0}, 0),
    ({"temperature": 0.7, "top_k": 3}, DRAWS),
    ({"temperature": 0.0, "logprobs": 2}, CHOOSES_ON_HOST),
    ({"temperature": 0.0, "repetition_penalty": 1.1}, CHOOSES_ON_HOST),
    ({"temperature": 1.0, "frequency_penalty": 0.5}, DRAWS | CHOOSES_ON_HOST),
    ({"temperature": 0.0, "logit_bias": {3: 1.0}}, CHOOSES_ON_HOST),
    ({"temperature": 0.0, "min_tokens": 2, "stop_token_ids": [4]}, CHOOSES_ON_HOST),
    ({"temperature": 0.0, "prompt_logprobs": 0}, TELLS_PROMPT),
]


@pytest.mark.parametrize(("params", "asked"), ASKED)
def test_what_a_request_may_ask_for_is_known_until_another_takes_its_slot(params: dict[str, Any], asked: int):
    sampling = SamplingState(3)
    plain = add_request("plain", [1, 2], temperature=0.0)
    for slot in range(3):
        sampling.set(slot, plain)
    sampling.set(1, add_request("asking", [1, 2], **params))
    assert [sampling.asked(np.array(slots)) for slots in ([1], [0, 1, 2], [0, 2])] == [asked, asked, 0]
    sampling.set(1, plain)
    assert sampling.asked(np.array([1])) == 0


@pytest.mark.parametrize(
    ("params", "among"),
    [
        ({"temperature": 1.0}, Among.ALL),
        ({"temperature": 1.0, "min_p": 0.1}, Among.ALL),
        ({"temperature": 1.0, "top_k": MOST_CANDIDATES, "top_p": 0.9, "min_p": 0.1}, Among.FEW),
        ({"temperature": 1.0, "top_k": MOST_CANDIDATES + 1}, Among.ANY),
        ({"temperature": 1.0, "top_p": 0.9}, Among.ANY),
    ],
)
def test_rows_draw_among_few_tokens_or_all_if_each_of_them_does(params: dict[str, Any], among: Among):
    sampling = SamplingState(4)
    sampling.set(0, add_request("greedy", [1, 2], temperature=0.0, top_p=0.5))
    sampling.set(1, add_request("asking", [1, 2], **params))
    sampling.set(2, add_request("few", [1, 2], temperature=0.5, top_k=1))
    sampling.set(3, add_request("all", [1, 2], temperature=0.5))
    assert sampling.draws_among(np.array([0, 1])) is among
    assert sampling.draws_among(np.array([1, 2])) is (Among.FEW if among is Among.FEW else Among.ANY)
    assert sampling.draws_among(np.array([1, 3])) is (Among.ALL if among is Among.ALL else Among.ANY)
