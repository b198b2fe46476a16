"""Tokens that ranks draw without telling each other their logits are those that one rank draws from all logits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from parhelion.distributed.group import ALONE
from parhelion.distributed.sampling import Among, Filters, SamplingOverRanks
from parhelion.layers.vocabulary import rows_per_rank
from parhelion.ops.top_k_top_p_sampling import TopKTopPSampling
from tests.distributed.thread_group import ThreadGroup, on_ranks

VOCAB, ROWS, MOST = 2003, 96, 32
"""No multiple of 2 or 3, nor of the width of a unit; a rank has many more tokens than it tells of."""

SPREADS = {"equal": 0.0, "flat": 0.3, "usual": 2.0, "peaked": 8.0}


def chosen_from(values: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    return torch.tensor(values)[torch.randint(len(values), (ROWS,), generator=generator)]


def filters(among: Among, seed: int) -> Filters:
    """Every row another mix, some of them greedy."""
    made = torch.Generator().manual_seed(seed)
    temperature = chosen_from((0.0, 0.4, 1.0, 1.7), made)
    top_k = {Among.FEW: (1, 3, 20, MOST), Among.ALL: (0,), Among.ANY: (-1, 0, 1, 40, 700, VOCAB, 1 << 30)}[among]
    top_p = (1.0,) if among is Among.ALL else (0.0, 0.3, 0.9, 0.999, 1.0)
    return Filters(
        temperature=temperature,
        top_k=torch.where(temperature == 0, 0, chosen_from(top_k, made)).int(),
        top_p=torch.where(temperature == 0, 0.5, chosen_from(top_p, made)),
        min_p=chosen_from((0.0, 0.0, 0.02, 0.5), made),
        uniform=torch.rand(ROWS, generator=made),
    )


def logits_of(spread: str, dtype: torch.dtype, has_ties: bool) -> torch.Tensor:
    logits = torch.randn(ROWS, VOCAB, generator=torch.Generator().manual_seed(len(spread))) * SPREADS[spread]
    return ((logits * 2).round() / 2 if has_ties else logits).to(dtype)


def drawn_by_one(logits: torch.Tensor, asked: Filters) -> torch.Tensor:
    """The contract's reference, in float64."""
    f = asked
    return TopKTopPSampling(logits.shape[1]).reference(
        logits.float(), f.temperature, f.top_k, f.top_p, f.min_p, f.uniform
    )


def drawn(group: ThreadGroup, logits: torch.Tensor, asked: Filters, among: Among) -> torch.Tensor:
    """What a rank says, which sees nothing but its own logits."""
    vocab_size = logits.shape[1]
    rows = rows_per_rank(vocab_size, group)
    sampling = SamplingOverRanks(vocab_size, rows, group, MOST)
    return sampling.draw(logits[:, group.rank * rows : (group.rank + 1) * rows], asked, among)


@pytest.mark.parametrize("among", Among)
@pytest.mark.parametrize("has_ties", [True, False])
@pytest.mark.parametrize("spread", SPREADS)
def test_two_and_three_ranks_draw_what_one_does(spread: str, has_ties: bool, among: Among) -> None:
    asked = filters(among, seed=len(spread))
    for dtype in (torch.float32, torch.bfloat16):
        logits = logits_of(spread, dtype, has_ties)
        expected = drawn_by_one(logits, asked)
        for size in (2, 3):
            for ids in on_ranks(size, lambda group, logits=logits: drawn(group, logits, asked, among)):
                assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize("among", Among)
def test_what_is_told_does_not_grow_with_the_vocabulary(among: Among) -> None:
    asked, told = filters(among, seed=1), []
    for copies in (1, 4):
        logits = logits_of("usual", torch.float32, has_ties=False).repeat(1, copies)

        def messages(group: ThreadGroup, logits: torch.Tensor = logits) -> list[int]:
            drawn(group, logits, asked, among)
            return group.told

        told.append(on_ranks(2, messages)[0])
    # Candidates and how many others equal the last, or maxima; eight sums over 256 digits; masses; ids.
    first = 4 * (MOST + 1) if among is Among.FEW else 4
    sums = [8 * 256] * 8 if among is Among.ANY else []
    assert told == [[ROWS * each for each in (first, *sums, 8, 8)]] * 2


def test_the_token_does_not_depend_on_the_number_of_ranks_to_the_last_bit() -> None:
    """Numbers at the very ends of tokens' shares: all masses are integers, so that sums are exact."""
    logits = logits_of("usual", torch.float32, has_ties=False)
    masses = (logits[0].double() - logits[0].max()).exp().cumsum(0)
    ends = (masses[:: VOCAB // ROWS] / masses[-1])[:ROWS].float()
    ones = torch.ones(ROWS)
    plain = Filters(ones, torch.zeros(ROWS).int(), ones, 0 * ones, ends)
    logits = logits[:1].expand(ROWS, -1).contiguous()
    alone = SamplingOverRanks(VOCAB, VOCAB, ALONE, MOST)
    expected = alone.draw(logits, plain, Among.ALL)
    assert torch.equal(alone.draw(logits, plain, Among.ANY), expected)
    assert len(set(expected.tolist())) > ROWS // 2
    for size in (2, 3, 5):
        assert torch.equal(on_ranks(size, lambda group: drawn(group, logits, plain, Among.ALL))[0], expected)


@pytest.mark.parametrize("among", Among)
def test_hidden_tokens_are_never_drawn_and_rows_without_any_other_get_some_token(among: Among) -> None:
    asked = filters(among, seed=2)
    logits = logits_of("flat", torch.float32, has_ties=False)
    logits[:, 100 : VOCAB - 3] = -torch.inf
    hidden = logits.clone()
    hidden[::2] = -torch.inf
    hidden[1] = torch.nan
    for ids in on_ranks(3, lambda group: drawn(group, logits, asked, among)):
        assert ids.tolist() == drawn_by_one(logits, asked).tolist()
    by_rank = on_ranks(3, lambda group: drawn(group, hidden, asked, among))
    assert all(torch.equal(ids, by_rank[0]) for ids in by_rank)
    assert 0 <= int(by_rank[0].min()) <= int(by_rank[0].max()) < VOCAB
    assert by_rank[0][3::2].tolist() == drawn_by_one(logits, asked)[3::2].tolist()


@pytest.mark.parametrize("among", Among)
def test_ranks_without_a_token_of_their_own_take_part(among: Among) -> None:
    """Five tokens on four ranks are two, two, one and none."""
    asked = filters(among, seed=3)
    logits = logits_of("usual", torch.float32, has_ties=False)[:, :5].contiguous()
    for ids in on_ranks(4, lambda group: drawn(group, logits, asked, among)):
        assert ids.tolist() == drawn_by_one(logits, asked).tolist()
