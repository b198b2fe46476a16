"""What is drawn with guesses is distributed as what is drawn without: a chain whose distributions are known.

The scheduler, the guesses' check and the sampler are the engine's; the model is a table of logits for each last token.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from parhelion.engine.core import EngineCore
from parhelion.engine.host.sampling import HostSampler
from parhelion.engine.messages import AddRequest
from parhelion.engine.sampling_state import SamplingState
from parhelion.engine.step_layout import rows_of, samples_of
from parhelion.engine.step_result import StepResult
from parhelion.scheduler import SchedulerConfig, StepPlan
from parhelion.speculative import Speculation
from parhelion.types import SamplingParams

VOCAB = 12
SLOTS = 128
LENGTH = 80
REQUESTS = 256

SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 1.0},
    "cooler": {"temperature": 0.7},
    "top-k": {"temperature": 1.0, "top_k": 4},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.0, "min_p": 0.03},
    "all of them": {"temperature": 1.3, "top_k": 9, "top_p": 0.95, "min_p": 0.02},
    "bias": {"temperature": 1.0, "logit_bias": {3: 1.5, 7: -1.0}},
    "penalties": {"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.02},
    "log-probabilities": {"temperature": 1.0, "top_p": 0.9, "logprobs": 2},
}
SHARES = (0.3, 0.6, 0.9)
"""Of guesses that are right: the probability of the likeliest token."""


class Chain:
    """A worker whose model is a table: what follows a token depends on that token alone."""

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table
        self._sampling = SamplingState(SLOTS)
        unused: Any = None
        self._sampler = HostSampler(unused, self._sampling, SLOTS, LENGTH + 8)

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> StepResult:
        for admission, request in zip(plan.admissions, admitted, strict=True):
            self._sampler.admit(admission.slot, np.array(admission.token_ids, np.int64))
            self._sampling.set(admission.slot, request)
        self._sampler.guess(plan.rows)
        rows = rows_of(plan)
        samples = samples_of(rows)
        last = self._sampler.tokens[samples.slots, samples.positions - 1].astype(np.int64)
        chosen, logprobs = self._sampler.sample(self._table[torch.from_numpy(last)], samples, self._sampler.stays(rows))
        return StepResult(chosen.tolist(), logprobs, [])


class Likeliest:
    """Guesses that every token is followed by the likeliest one."""

    def __init__(self, table: torch.Tensor) -> None:
        self._next = table.argmax(-1).tolist()
        self._last: dict[str, int] = {}

    def start(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._last[request_id] = token_ids[-1]

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        self._last[request_id] = token_ids[-1]

    def propose(self, request_id: str, count: int) -> list[int]:
        token, guesses = self._last[request_id], []
        for _ in range(count):
            token = self._next[token]
            guesses.append(token)
        return guesses

    def forget(self, request_id: str) -> None:
        self._last.pop(request_id, None)


def table_of(share: float, params: dict[str, Any]) -> torch.Tensor:
    """Logits under which the likeliest token has about this probability when it is drawn so."""
    generator = torch.Generator().manual_seed(3)
    table = torch.randn((VOCAB, VOCAB), generator=generator) / 2
    likeliest = table.argmax(-1, keepdim=True)
    others = table.scatter(1, likeliest, -math.inf).logsumexp(-1, keepdim=True)
    low, high = 0.01, 0.99
    while high - low > 1e-3:
        middle = (low + high) / 2
        found = table.scatter(1, likeliest, others + math.log(middle / (1 - middle)))
        chances = exact(found, params).gather(1, likeliest).mean()
        low, high = (middle, high) if chances < share else (low, middle)
    return found


def drawn(table: torch.Tensor, params: dict[str, Any], guessing: bool) -> tuple[list[list[int]], float]:
    """The tokens of all requests, the first one given, and the share of guesses that was right."""
    config = SchedulerConfig(
        num_blocks=SLOTS * (LENGTH + 8) // 16 + SLOTS,
        block_size=16,
        max_num_seqs=SLOTS,
        max_num_batched_tokens=1024,
        max_model_len=LENGTH + 4,
        enable_prefix_caching=False,
    )
    core = EngineCore(config, Chain(table), speculation=Speculation(Likeliest(table), 4) if guessing else None)
    texts: dict[str, list[int]] = {}
    try:
        for number in range(REQUESTS):
            name = f"r{number}/0"
            texts[name] = [number % VOCAB]
            core.add(
                AddRequest(
                    request_id=name,
                    prompt_token_ids=[number % VOCAB],
                    params=SamplingParams(max_tokens=LENGTH, ignore_eos=True, **params),
                    max_tokens=LENGTH,
                    stop_token_ids=[],
                    seed=1000 + number,
                    priority=0,
                    arrival=float(number),
                )
            )
        while core.has_work:
            for token in core.step():
                texts[token.request_id].append(token.token_id)
        core.check_integrity()
        stats = core.stats()
    finally:
        core.close()
    return list(texts.values()), stats.accepted_tokens_total / max(1, stats.guessed_tokens_total)


def exact(logits: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """[..., VOCAB] the distributions, written from the definitions of bias, temperature and filters."""
    biased = logits.double()
    for token, bias in params.get("logit_bias", {}).items():
        biased = biased + bias * torch.nn.functional.one_hot(torch.tensor(token), VOCAB)
    p, order = (biased / params["temperature"]).softmax(-1).sort(descending=True)
    kept = torch.arange(VOCAB) < (params.get("top_k") or VOCAB)
    among = p * kept
    before = among.cumsum(-1) - among
    kept = kept & (before < params.get("top_p", 1.0) * among.sum(-1, keepdim=True))
    kept = kept & (p >= params.get("min_p", 0.0) * p[..., :1])
    weights = torch.zeros_like(p).scatter(-1, order, p * kept)
    return weights / weights.sum(-1, keepdim=True)


def penalized(logits: torch.Tensor, counts: torch.Tensor, seen: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """[N, VOCAB] logits as penalties change them, by what the texts hold: output tokens, and whether a token stands in
    the text at all.
    """
    factor = params.get("repetition_penalty", 1.0)
    logits = torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)
    presence = params.get("presence_penalty", 0.0) * (counts > 0)
    return logits - presence - params.get("frequency_penalty", 0.0) * counts


def chances_of(texts: list[list[int]], table: torch.Tensor, params: dict[str, Any]) -> torch.Tensor:
    """[requests, LENGTH, VOCAB] the distribution that each token of the texts but the first was drawn from."""
    known = torch.tensor(texts)[:, :-1]
    stands = torch.nn.functional.one_hot(known, VOCAB).double().cumsum(1)
    # The first token is the prompt, which repetition counts and the others do not.
    output = stands - torch.nn.functional.one_hot(known[:, :1], VOCAB)
    return exact(penalized(table[known].double(), output, stands > 0, params), params)


@pytest.mark.parametrize(("setting", "share"), [*itertools.product(SETTINGS, SHARES)])
def test_draws_with_guesses_are_those_without_and_follow_the_distribution(setting: str, share: float) -> None:
    params = SETTINGS[setting]
    table = table_of(share, params)
    texts, accepted = drawn(table, params, guessing=True)
    assert texts == drawn(table, params, guessing=False)[0]
    if setting != "penalties":
        # Of four guesses in a row one counts only behind right ones.
        assert accepted == pytest.approx(sum(share**place for place in range(1, 5)) / 4, abs=0.1)
    chances = chances_of(texts, table, params).flatten(0, 1)
    tokens = torch.tensor(texts)
    last, drawn_next = tokens[:, :-1].flatten(), tokens[:, 1:].flatten()
    assert len(last) >= 20_000
    assert (chances.gather(1, drawn_next[:, None]) > 0).all()
    statistic, freedom = 0.0, 0
    for token in range(VOCAB):
        behind = last == token
        expected = chances[behind].sum(0)
        counts = drawn_next[behind].bincount(minlength=VOCAB).double()
        tested = expected >= 5
        # What is too rare to be tested alone is tested together.
        observed = torch.cat((counts[tested], counts[~tested].sum()[None]))
        wanted = torch.cat((expected[tested], expected[~tested].sum()[None]))
        observed, wanted = observed[wanted > 0], wanted[wanted > 0]
        statistic += float(((observed - wanted) ** 2 / wanted).sum())
        freedom += len(wanted) - 1
    # Of a chi-square's deviations, five: less than once in a million. Where chances differ from draw to draw, as with
    # penalties, it deviates less.
    assert statistic < freedom + 5 * math.sqrt(2 * max(1, freedom))
