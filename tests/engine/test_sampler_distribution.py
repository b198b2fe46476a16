"""What the sampler draws: the set of tokens and their shares, against an independent float64 reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from parhelion.engine import sampler
from parhelion.engine.sampler import CANDIDATES, uniform
from parhelion.engine.sampling_state import MIN_TEMPERATURE

from .requests import add_request, random_logits, sample_rows

NUM_POINTS = 1500


def reference_shares(logits: torch.Tensor, *, temperature: float, top_k: int = 0, top_p: float = 1.0, min_p: float = 0):
    """[vocab_size] probabilities: softmax, then top-k, top-p of what is left, min-p, in float64."""
    scaled = logits.double().numpy() / temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    if top_k > 0:
        weights[order[top_k:]] = 0
    weights /= weights.sum()
    before = np.cumsum(weights[order]) - weights[order]
    weights[order[before >= top_p]] = 0
    weights[weights < min_p * weights.max()] = 0
    return weights / weights.sum()


def shares_of_even_grid(logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch, **params: Any) -> npt.NDArray[Any]:
    """How often each token is drawn when the uniform numbers are the midpoints of NUM_POINTS equal intervals.

    Inverting a distribution function at such points gives each token its share to within one point, whatever the order
    in which the tokens are laid out, so that both the support and the probabilities show without any chance.
    """
    points = (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS
    monkeypatch.setattr(sampler, "uniform", lambda seeds, counters: points[counters])
    request = add_request(**params)
    tokens, _, _ = sample_rows(logits.expand(NUM_POINTS, -1), [request] * NUM_POINTS, output_indices=range(NUM_POINTS))
    return np.bincount(tokens, minlength=logits.shape[0]) / NUM_POINTS


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 3.0},
    "cold": {"temperature": 0.3},
    "top_k 1": {"top_k": 1},
    "top_k 7": {"top_k": 7},
    "top_k beyond the vocabulary": {"top_k": 10**6},
    "top_k -1": {"top_k": -1},
    "top_p 0.5": {"top_p": 0.5},
    "top_p tiny": {"top_p": 1e-6},
    "top_p 0.999": {"top_p": 0.999},
    "min_p 0.1": {"min_p": 0.1},
    "min_p 1": {"min_p": 1.0},
    "top_k and top_p": {"top_k": 40, "top_p": 0.8},
    "all three, hot": {"top_k": 50, "top_p": 0.9, "min_p": 0.05, "temperature": 1.5},
}


@pytest.mark.parametrize("case", CASES)
def test_support_and_shares_are_the_references(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    params = {"temperature": 1.0, **CASES[case]}
    logits = random_logits(1, 500, seed=len(case))[0]
    expected = reference_shares(logits, **params)
    drawn = shares_of_even_grid(logits, monkeypatch, **params)
    assert not drawn[expected == 0].any(), "a token that should have been cut off was drawn"
    assert np.abs(drawn - expected).max() < 1.01 / NUM_POINTS
    assert drawn[expected > 1 / NUM_POINTS].all(), "a token that should be drawn was cut off"


FLAT_CASES: dict[str, dict[str, Any]] = {
    "top_p takes most tokens": {"top_p": 0.95},
    "top_p just within the candidates": {"top_p": 0.4},
    "min_p takes most tokens": {"min_p": 0.5},
    "top_k beyond the candidates": {"top_k": 2000},
    "top_k beyond the candidates, then top_p beyond": {"top_k": 2000, "top_p": 0.9},
    "top_k beyond the candidates, then top_p within": {"top_k": 2000, "top_p": 0.3},
    "top_k at the candidates": {"top_k": CANDIDATES, "top_p": 0.99},
    "top_k just beyond the candidates": {"top_k": CANDIDATES + 1, "top_p": 0.99},
    "everything": {"top_k": 1800, "top_p": 0.7, "min_p": 0.75},
}


@pytest.mark.parametrize("case", FLAT_CASES)
def test_flat_distributions_get_all_their_tokens_not_just_the_first_candidates(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(1, 2600, scale=0.2)[0]
    expected = reference_shares(logits, temperature=1.0, **FLAT_CASES[case])
    drawn = shares_of_even_grid(logits, monkeypatch, **FLAT_CASES[case])
    assert not drawn[expected == 0].any()
    # With more tokens than points not every token is drawn; in bands of a tenth of the tokens the shares must fit.
    order = np.argsort(-expected, kind="stable")
    for band in np.array_split(order, 10):
        assert abs(drawn[band].sum() - expected[band].sum()) < 0.5 * len(band) / NUM_POINTS
    assert np.abs(np.cumsum(drawn[order]) - np.cumsum(expected[order])).max() < 2 / NUM_POINTS


@pytest.mark.parametrize(
    "params", [FLAT_CASES["top_p takes most tokens"], FLAT_CASES["everything"], CASES["top_p 0.5"]]
)
def test_the_largest_uniform_number_draws_the_last_token_kept(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random_logits(1, 2600, scale=0.2)[0]
    expected = reference_shares(logits, temperature=1.0, **params)
    monkeypatch.setattr(sampler, "uniform", lambda seeds, counters: np.full(len(counters), 1 - 2.0**-53))
    tokens, _, _ = sample_rows(logits[None], [add_request(**params)])
    assert tokens == [int(np.where(expected > 0, expected, np.inf).argmin())]


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.8}, {"temperature": 1.3, "min_p": 0.02}]
)
@pytest.mark.parametrize("over", ["seeds", "counters"])
def test_drawn_tokens_follow_the_distribution(params: dict[str, Any], over: str) -> None:
    count, vocab_size = 8000, 40
    logits = random_logits(1, vocab_size, scale=1.0, seed=3)
    if over == "seeds":
        requests = [add_request(seed=seed, **params) for seed in range(count)]
        tokens, _, _ = sample_rows(logits.expand(count, -1), requests, output_indices=[0] * count)
    else:
        requests = [add_request(seed=1234, **params)] * count
        tokens, _, _ = sample_rows(logits.expand(count, -1), requests, output_indices=range(count))
    expected = reference_shares(logits[0], **{"temperature": 1.0, **params}) * count
    observed = np.bincount(tokens, minlength=vocab_size)
    kept = expected > 0
    assert not observed[~kept].any()
    chi_square = ((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    # Mean df, deviation sqrt(2 df): five deviations are passed by chance in far less than one of a thousand runs.
    df = int(kept.sum()) - 1
    assert chi_square < df + 5 * (2 * df) ** 0.5


def test_uniform_numbers_lie_in_the_unit_interval_and_fill_it_evenly() -> None:
    seeds = np.concatenate((np.arange(20000), np.arange(1, 20001) << 40)).astype(np.uint64)
    for numbers in (uniform(seeds, np.zeros(40000, np.int64)), uniform(np.zeros(40000, np.uint64), np.arange(40000))):
        assert (numbers >= 0).all()
        assert (numbers < 1).all()
        assert len(np.unique(numbers)) == 40000
        counts = np.histogram(numbers, 50, (0, 1))[0]
        assert ((counts - 800) ** 2 / 800).sum() < 49 + 5 * 98**0.5
    extreme = uniform(np.array([0, 2**64 - 1, 2**63], np.uint64), np.array([0, 2**62, 1]))
    assert ((extreme >= 0) & (extreme < 1)).all()


@pytest.mark.parametrize("lag", [1, 2, 3, 1 << 16, 1 << 32])
def test_uniform_numbers_of_neighbouring_seeds_and_counters_are_unrelated(lag: int) -> None:
    base = np.arange(30000)
    zeros = np.zeros(30000, np.int64)
    first = uniform(base.astype(np.uint64), zeros)
    pairs = {
        "seeds": uniform((base + lag).astype(np.uint64), zeros),
        "counters": uniform(base.astype(np.uint64), zeros + lag),
        "completion i of seed s is not token i of seed s": uniform(zeros.astype(np.uint64), base + lag),
    }
    for name, second in pairs.items():
        # The correlation of independent numbers has deviation 1 / sqrt(30000) = 0.0058.
        assert abs(np.corrcoef(first, second)[0, 1]) < 5 * 0.0058, name
        differences = np.histogram((second - first) % 1, 20, (0, 1))[0]
        assert ((differences - 1500) ** 2 / 1500).sum() < 19 + 5 * 38**0.5, name


@pytest.mark.parametrize("filters", [{}, {"top_k": 50}, {"top_p": 0.9}, {"min_p": 0.01}])
@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-7, MIN_TEMPERATURE, 1e-4])
def test_a_tiny_temperature_draws_the_greedy_token(temperature: float, filters: dict[str, Any]) -> None:
    logits = random_logits(3, 300, scale=10)
    logits[1, :50] = float("-inf")
    requests = [add_request(seed=seed, temperature=temperature, **filters) for seed in range(3)]
    assert sample_rows(logits, requests)[0] == logits.argmax(-1).tolist()


def test_the_largest_temperature_draws_nearly_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = shares_of_even_grid(random_logits(1, 50)[0], monkeypatch, temperature=100.0)
    assert np.abs(drawn - 1 / 50).max() < 0.1 / 50 + 1 / NUM_POINTS


@pytest.mark.parametrize("params", [{}, {"top_k": 30}, {"top_p": 0.99}, {"min_p": 1e-9}, {"top_p": 0.99, "top_k": 5}])
def test_tokens_of_probability_zero_are_never_drawn(params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.full((60,), float("-inf"))
    logits[[3, 30, 58]] = torch.tensor([0.0, 1.0, 0.5])
    drawn = shares_of_even_grid(logits, monkeypatch, **params)
    assert set(np.flatnonzero(drawn)) == {3, 30, 58}
    for number in (0.0, 1 - 2.0**-53):
        monkeypatch.setattr(sampler, "uniform", lambda seeds, counters, number=number: np.full(len(seeds), number))
        assert sample_rows(logits[None], [add_request(**params)])[0][0] in (3, 30, 58)
