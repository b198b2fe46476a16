"""Draft models and heads beside the last of several stages: their guesses are right as often as beside the whole model,
and change no token.
"""

from __future__ import annotations

import multiprocessing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parhelion.distributed.group import ALONE, Group
from parhelion.distributed.rendezvous import file_store, join, leave
from parhelion.engine.drafts.ahead import guesses_of, proposals, rows_behind
from parhelion.engine.step_layout import StepRows
from parhelion.engine.step_result import Proposal
from parhelion.scheduler import Row
from parhelion.speculative import DraftingAhead
from tests.engine.device_cores import core_of, run
from tests.engine.test_drafts_of_ranks import folder, requests

__all__ = ["folder"]

CPU = torch.device("cpu")
NUM_BLOCKS = 22
"""Few enough for preemptions."""

CASES = [
    (False, "same-model", 2),
    (False, "head", 3),
    (True, "model", 2),
    (True, "head", 3),
]
"""Whether it is the worker of GPUs, the folder of the draft, and stages."""

SHARED = [(True, None, 2), (True, "head", 3)]
"""Those that two ranks share in each stage."""

Told = tuple[dict[str, list[int]], int, int]
"""Tokens by request, guesses, and how many were right."""


def told(folder: Path, on_device: bool, draft: str | None, pp: int, group: Group = ALONE) -> Told:
    drafting = folder / draft if draft is not None else None
    core = core_of(folder / "target", on_device, True, NUM_BLOCKS, draft=drafting, group=group, pp=pp)
    outputs = run(core, requests())
    stats = core.stats()
    assert stats.preemptions_total > 0
    tokens = {name: [token for token, *_ in each] for name, each in outputs.items()}
    return tokens, stats.guessed_tokens_total, stats.accepted_tokens_total


alone = cache(told)


@pytest.mark.parametrize(("on_device", "draft", "pp"), CASES)
def test_stages_check_the_guesses_of_the_last_one(folder: Path, on_device: bool, draft: str, pp: int) -> None:
    tokens, guessed, accepted = alone(folder, on_device, draft, pp)
    plain, *_ = alone(folder, on_device, None, 1)
    _, guessed_whole, accepted_whole = alone(folder, on_device, draft, 1)
    if on_device:
        # The host draws from numbers of more digits, in the steps that the request which needs it is in.
        tokens = tokens | {"drawn": plain["drawn"]}
    assert tokens == plain
    assert guessed > 30
    # Some guesses are not made for want of a block, and others are made for steps of other requests.
    assert accepted / guessed > accepted_whole / guessed_whole - 0.15
    assert accepted > 0.6 * accepted_whole


def follow(folder: Path, store: str) -> None:
    """Rank 1 of all stages: the same cores, told the same."""
    torch.set_num_threads(1)
    group = join(file_store(store, 2), 1, 2, CPU)
    for case in SHARED:
        told(folder, *case, group)


def test_two_ranks_in_each_stage_guess_and_choose_as_one(folder: Path) -> None:
    store = str(folder / "store")
    other = multiprocessing.get_context("spawn").Process(target=follow, args=(folder, store))
    other.start()
    try:
        group = join(file_store(store, 2), 0, 2, CPU)
        shared = [told(folder, *case, group) for case in SHARED]
    finally:
        leave()
        other.join(20)
        other.kill()
    assert shared == [alone(folder, *case) for case in SHARED]


def test_what_comes_behind_a_steps_rows() -> None:
    """One guess of two was right, none was made, a prompt ends, a prompt goes on, a block ends, a request ends."""
    starts, counts, samples = [10, 20, 0, 0, 6, 30], [3, 1, 8, 8, 2, 1], [3, 1, 1, 0, 2, 1]
    rows = StepRows(np.arange(6), *(np.array(each) for each in (starts, counts, samples, [4, 7, 0, 0, 2, 9])))
    accepted, num_blocks = np.array([1, 0, 0, 0, 1, 0]), np.array([4, 7, 3, 3, 2, 9])
    behind = rows_behind(rows, accepted, num_blocks, (4, 32), most=3)
    assert behind.starts.tolist() == [12, 21, 8, 8, 8, 31]
    assert behind.samples.tolist() == [4, 4, 4, 0, 1, 2]
    assert behind.counts.tolist() == [4, 4, 4, 2, 1, 2]
    assert behind.output_indices[[0, 1, 2, 4, 5]].tolist() == [6, 8, 1, 4, 10]
    planned = [Row(f"r{row}", row, 0, 1, True, 0, (row, row + 1)) for row in range(6)]
    assert guesses_of(planned[:2]) == [0, 1, 1, 2]
    assert proposals(planned, behind, list(range(100, 110))) == [
        Proposal("r0", 13, [100, 101, 102]),
        Proposal("r1", 22, [103, 104, 105]),
        Proposal("r2", 9, [106, 107, 108]),
        Proposal("r5", 32, [109]),
    ]


def test_guesses_count_only_behind_the_tokens_that_they_were_made_for() -> None:
    drafting: Any = DraftingAhead(3, cost=0.5)
    drafting.begin_step(1, 1)
    assert (drafting.follows, drafting.num_ahead) == (True, 3)
    assert drafting.guesses("a", [5, 6], 4) == ()
    drafting.hear("a", 2, [7, 8, 9])
    assert drafting.guesses("a", [5, 6], 4) == [7, 8, 9]
    assert drafting.guesses("a", [5, 6], 2) == [7, 8]
    assert drafting.guesses("a", [5, 6, 7], 4) == ()
    drafting.forget("a")
    assert drafting.guesses("a", [5, 6], 4) == ()
