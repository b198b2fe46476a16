"""The worker of GPUs on two ranks, run on a CPU without graphs, hands out the tokens of one rank."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.distributed.group import Group
from parhelion.distributed.rendezvous import file_store, join, leave
from parhelion.distributed.sampling import MOST_CANDIDATES
from parhelion.engine.messages import AddRequest
from tests.e2e.tiny_models import TinyModel
from tests.engine.device_cores import core_of, greedy_and_drawn_requests, prompt_of, run
from tests.engine.requests import add_request

CPU = torch.device("cpu")
# Two ranks need padding behind so many tokens, of which they have more than they tell each other about.
MODEL = TinyModel("llama-odd-vocabulary", "Llama", {"vocab_size": 1511})
NUM_BLOCKS = 40
"""Few enough for preemptions."""

Outputs = dict[str, list[Any]]
"""Of ``run``."""


def host_requests() -> list[AddRequest]:
    """What the device does not do without the host."""
    return [
        add_request("h0", prompt_of(20, 6), max_tokens=9, temperature=0.0, repetition_penalty=1.3, logprobs=2),
        add_request("h1", prompt_of(11, 8), max_tokens=5, temperature=0.0, prompt_logprobs=1),
    ]


def requests() -> list[AddRequest]:
    """What the device chooses greedily or draws, and what goes by the host."""
    return [*greedy_and_drawn_requests(), *host_requests()]


def drawing() -> dict[str, list[AddRequest]]:
    """Requests that the device draws for."""
    drawn = greedy_and_drawn_requests()
    kinds = {"few": ("d1", "d3"), "all": ("d0",), "any": ("d2",)}
    found = {kind: [each for each in drawn if each.request_id in names] for kind, names in kinds.items()}
    return found | {"each": drawn}


OVERLAP = (True, False)


@dataclass(frozen=True)
class NotingGroup(Group):
    """Notes how many bytes of a row, at most, the ranks tell each other at once."""

    widths: list[int] = field(default_factory=list)

    def gather_columns(self, part: torch.Tensor) -> torch.Tensor:
        self.widths.append(part.shape[1] * part.itemsize)
        return super().gather_columns(part)


def told(folder: Path, group: Group) -> dict[bool, Outputs]:
    """What a rank hands out, with and without overlap."""
    return {each: run(core_of(folder, True, each, NUM_BLOCKS, group=group), requests()) for each in OVERLAP}


def told_apart(folder: Path, group: Group) -> tuple[dict[str, Outputs], list[int]]:
    """What a rank hands out of requests that draw among few tokens, among all, and among any number, and of each kind
    beside greedy ones; and how wide the messages were.
    """
    noting = NotingGroup(group.rank, group.size)
    found = {name: run(core_of(folder, True, True, NUM_BLOCKS, group=noting), each) for name, each in drawing().items()}
    return found, noting.widths


def follow(folder: Path, store: str) -> None:
    """Rank 1: the same cores, told the same."""
    torch.set_num_threads(1)
    group = join(file_store(store, 2), 1, 2, CPU)
    told(folder, group)
    told_apart(folder, group)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model."""
    folder = tmp_path_factory.mktemp("of-ranks")
    MODEL.write(folder)
    return folder


@pytest.fixture(scope="module")
def of_two(folder: Path) -> tuple[dict[bool, Outputs], dict[str, Outputs], list[int]]:
    """What the first of two ranks hands out: ``told``, and ``told_apart``."""
    store = str(folder / "store")
    other = multiprocessing.get_context("spawn").Process(target=follow, args=(folder, store))
    other.start()
    try:
        group = join(file_store(store, 2), 0, 2, CPU)
        return told(folder, group), *told_apart(folder, group)
    finally:
        leave()
        other.join(20)
        other.kill()


@pytest.mark.parametrize("overlap", OVERLAP)
def test_two_ranks_choose_as_one(
    folder: Path, of_two: tuple[dict[bool, Outputs], dict[str, Outputs], list[int]], overlap: bool
) -> None:
    alone = run(core_of(folder, True, overlap, NUM_BLOCKS), requests())
    shared = of_two[0][overlap]
    assert {name: [token for token, *_ in told] for name, told in shared.items()} == {
        name: [token for token, *_ in told] for name, told in alone.items()
    }
    for (_, ours, prompt), (_, theirs, expected) in zip(shared["h0"], alone["h0"], strict=True):
        assert ours is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert prompt == expected is None


def test_ranks_that_draw_tell_each_other_candidates_and_no_logits(
    folder: Path, of_two: tuple[dict[bool, Outputs], dict[str, Outputs], list[int]]
) -> None:
    _, by_kind, widths = of_two
    for name, requests in drawing().items():
        assert by_kind[name] == run(core_of(folder, True, True, NUM_BLOCKS), requests)
    # Candidates and their count, a maximum, masses and ids, a likeliest token and its logit.
    assert set(widths) == {4 * (MOST_CANDIDATES + 1), 4, 8, 16}
