"""The worker of GPUs on two ranks, run on a CPU without graphs, hands out the tokens of one rank."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.distributed.group import Group
from parhelion.distributed.rendezvous import file_store, join, leave
from parhelion.engine.messages import AddRequest
from tests.e2e.tiny_models import TinyModel
from tests.engine.device_cores import core_of, greedy_and_drawn_requests, prompt_of, run
from tests.engine.requests import add_request

CPU = torch.device("cpu")
# Two ranks need padding behind so many tokens.
MODEL = TinyModel("llama-odd-vocabulary", "Llama", {"vocab_size": 511})
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


OVERLAP = (True, False)


def told(folder: Path, group: Group) -> dict[bool, Outputs]:
    """What a rank hands out, with and without overlap."""
    return {each: run(core_of(folder, True, each, NUM_BLOCKS, group=group), requests()) for each in OVERLAP}


def follow(folder: Path, store: str) -> None:
    """Rank 1: the same cores, told the same."""
    torch.set_num_threads(1)
    told(folder, join(file_store(store, 2), 1, 2, CPU))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the model."""
    folder = tmp_path_factory.mktemp("of-ranks")
    MODEL.write(folder)
    return folder


@pytest.fixture(scope="module")
def of_two(folder: Path) -> dict[bool, Outputs]:
    """What the first of two ranks hands out."""
    store = str(folder / "store")
    other = multiprocessing.get_context("spawn").Process(target=follow, args=(folder, store))
    other.start()
    try:
        return told(folder, join(file_store(store, 2), 0, 2, CPU))
    finally:
        leave()
        other.join(20)
        other.kill()


@pytest.mark.parametrize("overlap", OVERLAP)
def test_two_ranks_choose_as_one(folder: Path, of_two: dict[bool, Outputs], overlap: bool) -> None:
    alone = run(core_of(folder, True, overlap, NUM_BLOCKS), requests())
    shared = of_two[overlap]
    assert {name: [token for token, *_ in told] for name, told in shared.items()} == {
        name: [token for token, *_ in told] for name, told in alone.items()
    }
    for (_, ours, prompt), (_, theirs, expected) in zip(shared["h0"], alone["h0"], strict=True):
        assert ours is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert prompt == expected is None
