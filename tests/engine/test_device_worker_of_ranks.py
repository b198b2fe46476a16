"""The worker of GPUs on two ranks, run on a CPU without graphs, hands out the tokens of one rank."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from parhelion.distributed.rendezvous import host_store, join, leave, reach_store
from parhelion.engine.messages import AddRequest
from tests.e2e.tiny_models import TinyModel
from tests.engine.device_cores import core_of, greedy_and_drawn_requests, prompt_of, run
from tests.engine.requests import add_request

CPU = torch.device("cpu")
# Two ranks need padding behind so many tokens.
MODEL = TinyModel("llama-odd-vocabulary", "Llama", {"vocab_size": 511})
NUM_BLOCKS = 40
"""Few enough for preemptions."""


def host_requests() -> list[AddRequest]:
    """What the device does not do without the host."""
    return [
        add_request("h0", prompt_of(20, 6), max_tokens=9, temperature=0.0, repetition_penalty=1.3, logprobs=2),
        add_request("h1", prompt_of(11, 8), max_tokens=5, temperature=0.0, prompt_logprobs=1),
    ]


def requests() -> list[AddRequest]:
    """What the device chooses greedily or draws, and what goes by the host."""
    return [*greedy_and_drawn_requests(), *host_requests()]


def follow(folder: Path, port: int, overlap: bool) -> None:
    """Rank 1: the same core, told the same."""
    torch.set_num_threads(1)
    group = join(reach_store(port, 2), 1, 2, CPU)
    run(core_of(folder, True, overlap, NUM_BLOCKS, group=group), requests())


@pytest.mark.parametrize("overlap", [True, False])
def test_two_ranks_choose_as_one(tmp_path: Path, overlap: bool) -> None:
    MODEL.write(tmp_path)
    alone = run(core_of(tmp_path, True, overlap, NUM_BLOCKS), requests())
    store = host_store(2)
    other = multiprocessing.get_context("spawn").Process(target=follow, args=(tmp_path, store.port, overlap))
    other.start()
    try:
        group = join(store, 0, 2, CPU)
        shared = run(core_of(tmp_path, True, overlap, NUM_BLOCKS, group=group), requests())
    finally:
        leave()
        other.join(20)
        other.kill()
    assert {name: [token for token, *_ in told] for name, told in shared.items()} == {
        name: [token for token, *_ in told] for name, told in alone.items()
    }
    for (_, ours, prompt), (_, theirs, expected) in zip(shared["h0"], alone["h0"], strict=True):
        assert ours is not None
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert prompt == expected is None
