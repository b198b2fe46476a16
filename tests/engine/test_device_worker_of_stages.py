"""The worker of GPUs in stages, run on a CPU without graphs, hands out the tokens of one that has the whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parhelion.engine.device import worker as device_worker
from parhelion.engine.device.step import Mode
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_layout import Bucket
from tests.e2e.tiny_models import TinyModel
from tests.engine.device_cores import Recorder, core_of, greedy_and_drawn_requests, greedy_requests, run
from tests.engine.test_device_worker import QUALITIES, Prophet, texts_of
from tests.engine.test_device_worker_of_ranks import NUM_BLOCKS, host_requests


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama-five-layers")
    TinyModel("llama-five-layers", "Llama", {"num_hidden_layers": 5}).write(folder)
    return folder


def greedy_and_host_requests() -> list[AddRequest]:
    return [*greedy_requests(), *host_requests()]


def tokens_of(outputs: dict[str, list[Any]]) -> dict[str, list[int]]:
    return {name: [token for token, *_ in told] for name, told in outputs.items()}


def test_stages_choose_as_the_whole_model_does(five_layers: Path) -> None:
    """With prompts in chunks and preemptions."""
    wanted = greedy_and_drawn_requests()
    expected = run(core_of(five_layers, True, True, 1000), wanted)
    core = core_of(five_layers, True, True, NUM_BLOCKS, pp=3)
    assert run(core, wanted) == expected
    assert core.stats().preemptions_total > 0


def test_what_goes_by_the_host_does_so_in_the_last_stage(five_layers: Path) -> None:
    expected = run(core_of(five_layers, True, True, 1000), greedy_and_host_requests())
    found = run(core_of(five_layers, True, True, NUM_BLOCKS, pp=2), greedy_and_host_requests())
    assert tokens_of(found) == tokens_of(expected)
    for (_, ours, prompt), (_, theirs, whole) in zip(
        found["h0"] + found["h1"], expected["h0"] + expected["h1"], strict=True
    ):
        # float32 sums in another order, where steps are of other sizes
        assert (ours is None, prompt is None) == (theirs is None, whole is None)
        assert ours is None or ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


def test_guesses_are_checked_in_stages(five_layers: Path) -> None:
    wanted = greedy_and_drawn_requests()
    expected = run(core_of(five_layers, True, True, 1000), wanted)
    prophet = Prophet(texts_of(wanted, expected), QUALITIES["some requests' right, some wrong, some mixed"])
    core = core_of(five_layers, True, True, NUM_BLOCKS, proposer=prophet, pp=2)
    assert tokens_of(run(core, wanted)) == tokens_of(expected)
    stats = core.stats()
    assert 0 < stats.accepted_tokens_total < stats.guessed_tokens_total


def test_every_stage_captures_its_own_graphs_and_those_before_the_last_only_one_a_size(
    five_layers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_worker, "GraphCache", Recorder)
    core = core_of(five_layers, True, True, 1000, use_graphs=True, pp=3)
    workers = core._worker._first.workers  # type: ignore[attr-defined]
    ahead = {(Bucket.decoding(size), Mode.GREEDY) for size in (1, 2, 4, 5)}
    for worker in workers:
        assert worker.graphs.captured(worker._step) == ahead
    expected = run(core_of(five_layers, True, True, 1000), greedy_and_drawn_requests())
    assert tokens_of(run(core, greedy_and_drawn_requests())) == tokens_of(expected)
    modes = [{mode for _, mode in worker.graphs.captured(worker._step)} for worker in workers]
    assert modes == [{Mode.GREEDY}, {Mode.GREEDY}, {Mode.GREEDY, Mode.DRAW}]
