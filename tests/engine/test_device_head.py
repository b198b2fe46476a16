"""An EAGLE-3 head on the device, run on a CPU without graphs: it changes no token, and guesses what it would guess from
scratch.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parhelion.config import EngineConfig
from parhelion.engine.device import worker as device_worker
from parhelion.engine.device.drafter import DeviceDrafter, PendingDraft
from parhelion.engine.device.head import HeadFeatures
from parhelion.engine.device.state import DeviceState
from parhelion.engine.device.step import Mode
from parhelion.engine.drafts.progress import HeadProgress, accepted_of
from parhelion.engine.load import load_model
from parhelion.engine.step_layout import Bucket, StepInts, StepRows, pack, view_ints
from parhelion.models.decoder import HiddenStates
from parhelion.ops.resolve import Resolver
from parhelion.scheduler import StepPlan
from parhelion.speculative import Drafting, Pace
from tests.e2e.eagle3_scratch import Scratch, write_fitted_head, write_random_head
from tests.e2e.tiny_models import TINY_MODELS
from tests.engine.device_cores import (
    MOST_GUESSES,
    Recorder,
    core_of,
    greedy_and_drawn_requests,
    greedy_requests,
    prompt_of,
    run,
)
from tests.engine.requests import add_request
from tests.engine.test_draft_progress import listed, rows_of

CPU = torch.device("cpu")

Outputs = dict[str, list[Any]]


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama-for-heads")
    TINY_MODELS[0].write(folder)
    return folder


@pytest.fixture(scope="module")
def random_head(target: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scratch]:
    folder = tmp_path_factory.mktemp("random-head")
    model = load_model(EngineConfig(model=str(target), dtype="float32", device="cpu", threads=1), target).model
    return folder, write_random_head(model, folder)


@pytest.fixture(scope="module")
def fitted_head(random_head: tuple[Path, Scratch], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fitted_head(random_head[1], tmp_path_factory.mktemp("fitted-head"))


@pytest.fixture(scope="module")
def expected(target: Path) -> Outputs:
    """Without guesses."""
    return run(core_of(target, True, True, 1000), greedy_and_drawn_requests())


@pytest.mark.parametrize("num_blocks", [1000, 30], ids=["room for all", "preemptions"])
@pytest.mark.parametrize("is_fitted", [True, False], ids=["often right", "about everything it reads"])
def test_a_head_changes_no_token(
    target: Path,
    random_head: tuple[Path, Scratch],
    fitted_head: Path,
    expected: Outputs,
    is_fitted: bool,
    num_blocks: int,
) -> None:
    """Eleven requests take five slots in turn, and prompts of up to 49 tokens come in chunks: a step has 24."""
    core = core_of(target, True, True, num_blocks, draft=fitted_head if is_fitted else random_head[0])
    assert run(core, greedy_and_drawn_requests()) == expected
    stats = core.stats()
    assert stats.guessed_tokens_total > 100
    assert (stats.preemptions_total > 0) == (num_blocks == 30)
    if is_fitted:
        assert 0 < stats.accepted_tokens_total < stats.guessed_tokens_total


def test_what_the_host_samples_is_the_same_with_a_head(target: Path, fitted_head: Path) -> None:
    requests = [
        add_request("r0", prompt_of(20, 6), max_tokens=22, temperature=0.0, repetition_penalty=1.3, logprobs=2),
        add_request("r1", prompt_of(40, 3), max_tokens=12, temperature=0.0, logit_bias={5: 2.0}),
        add_request("r2", prompt_of(30, 7), max_tokens=16, temperature=0.0, prompt_logprobs=1),
    ]
    plain = run(core_of(target, True, True, 1000), requests)
    core = core_of(target, True, True, 1000, draft=fitted_head)
    got = run(core, requests)
    assert core.stats().guessed_tokens_total > 20
    assert {name: [token for token, _, _ in outputs] for name, outputs in got.items()} == {
        name: [token for token, _, _ in outputs] for name, outputs in plain.items()
    }


class Moody(Drafting):
    """Guesses for some steps and rests for some, over and over."""

    def __init__(self, needs_states: bool) -> None:
        super().__init__(MOST_GUESSES, 0.5, Pace(), needs_states, on_device=True)

    def _best(self, num_rows: int) -> int:
        return 3 if self._num_steps % 9 < 5 else 0


@pytest.mark.parametrize("needs_states", [True, False], ids=["follows a step first", "guesses at once"])
def test_rests_change_no_token(
    target: Path,
    fitted_head: Path,
    expected: Outputs,
    needs_states: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows that guess right behind a rest have no features, and make do with what they find."""
    plans: list[StepPlan] = []
    original = device_worker.DeviceWorker.execute

    def execute(self: Any, plan: StepPlan, admitted: Any) -> Any:
        plans.append(plan)
        return original(self, plan, admitted)

    monkeypatch.setattr(device_worker.DeviceWorker, "execute", execute)
    core = core_of(target, True, True, 1000, draft=fitted_head, speculation=Moody(needs_states))
    assert run(core, greedy_and_drawn_requests()) == expected
    assert core.stats().accepted_tokens_total > 0
    behind_rests = [plan for before, plan in pairwise(plans) if plan.follows and not before.follows]
    assert len(behind_rests) >= 3
    assert any(row.guesses for plan in behind_rests for row in plan.rows) == (not needs_states)


@pytest.mark.parametrize("num_blocks", [1000, 40], ids=["room for all", "preemptions"])
def test_its_guesses_are_those_from_scratch(
    target: Path, random_head: tuple[Path, Scratch], num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, scratch = random_head
    steps: list[tuple[list[int], list[int]]] = []
    num_ahead: list[int] = []
    original = DeviceDrafter.draft

    def draft(self: DeviceDrafter, rows: StepRows, mode: Mode) -> PendingDraft:
        tokens, wrong = (each.clone() for each in (self._queue._state.tokens, self._queue._state.num_wrong))
        pending = original(self, rows, mode)
        ids = iter(pending.read(wrong.numpy()).token_ids)
        unchecked = np.zeros_like(rows.slots) if rows.unchecked is None else rows.unchecked
        num_ahead.append(int((unchecked > 0).sum()))
        starts = rows.starts - np.where(unchecked > 0, wrong.numpy()[rows.slots], 0)
        for slot, start, samples in zip(rows.slots, starts, rows.samples, strict=True):
            if samples > 1:
                steps.append((tokens[slot, : start + 1].tolist(), [next(ids) for _ in range(samples - 1)]))
        return pending

    monkeypatch.setattr(DeviceDrafter, "draft", draft)
    # So many that no row waits for one while others go on: what the head has seen of it would be gone. And of a cached
    # prefix's last token the head knows what followed it elsewhere.
    core = core_of(target, True, True, num_blocks, draft=folder, enable_prefix_caching=False)
    run(core, greedy_requests())
    assert (core.stats().preemptions_total > 0) == (num_blocks == 40)
    assert len(steps) > 80
    assert sum(num_ahead) > 0.5 * len(steps)
    for known, guesses in steps[::5]:
        assert guesses == scratch.guesses(known, len(guesses))


def test_guesses_drawn_almost_greedily_are_right_as_often_as_greedy_ones(target: Path, fitted_head: Path) -> None:
    """The latter come by ``likeliest``, the former from logits of the whole vocabulary."""

    def accepted(temperature: float) -> int:
        core = core_of(target, True, True, 1000, draft=fitted_head)
        params: dict[str, Any] = {"max_tokens": 30, "temperature": temperature}
        run(core, [add_request(f"r{first}", [first, first + 1], **params) for first in range(2, 7)])
        return core.stats().accepted_tokens_total

    assert accepted(1e-3) == accepted(0.0) > 20


def test_graphs_of_steps_that_it_follows_are_their_own_and_few(
    target: Path, fitted_head: Path, expected: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_worker, "GraphCache", Recorder)
    core = core_of(target, True, True, 1000, draft=fitted_head, speculation=Moody(True), use_graphs=True)
    worker: Any = core._worker
    recorder: Recorder = worker.graphs
    plain, followed, guessing = worker._step, worker._followed_step, worker._drafter._step
    decoding, passes = ({(Bucket.decoding(size, at), Mode.GREEDY) for size in (1, 2, 4, 5)} for at in (False, True))
    verifying = {(Bucket.verifying(size, siblings=8, at_bounds=True), Mode.GREEDY) for size in (2, 4, 8, 16, 24)}
    passes |= verifying
    assert recorder.captured(plain) == decoding
    assert recorder.captured(followed) == verifying
    assert recorder.captured(guessing) == passes
    requests = greedy_requests()
    assert run(core, requests) == {request.request_id: expected[request.request_id] for request in requests}
    # Only steps and passes with prompts in them were not captured ahead.
    for step, ahead in ((plain, decoding), (followed, verifying), (guessing, passes)):
        assert not any(bucket.decodes for bucket, _ in recorder.captured(step) - ahead)


class Summing:
    """Stands in for a head: a feature is the sum of the hidden states, and those of padding are anything."""

    dtype, device = torch.float32, torch.device("cpu")

    class config:
        class layer:
            hidden_size = 1

    @staticmethod
    def features(states: torch.Tensor) -> torch.Tensor:
        return states.sum(-1, keepdim=True)


def _features() -> tuple[HeadFeatures, DeviceState]:
    state = DeviceState(3, 30, 4, CPU, Resolver(CPU))
    head: Any = Summing()
    return HeadFeatures(head, (0, 1), 8, state), state


def _ints(rows: StepRows, bucket: Bucket, state: DeviceState) -> StepInts:
    buffer = np.zeros(100, np.int32)
    pack(rows, bucket, buffer, state.spare_slot, state.spare_position)
    return view_ints(torch.from_numpy(buffer), bucket)


def test_features_are_found_by_slot_and_position_and_then_those_behind_the_last_guess() -> None:
    features, state = _features()
    states = HiddenStates((0, 1), [torch.arange(8.0)[:, None], torch.full((8, 1), 100.0)])
    states.taken[0][6:] = torch.nan
    features.keep(_ints(rows_of((2, 9, 4, 0), (0, 3, 2, 1)), Bucket(4, 8), state), states)
    catching_up = _ints(rows_of((0, 3, 2, 1), (2, 9, 3, 0)), Bucket(4, 8), state)
    assert features.of(catching_up).flatten()[:5].tolist() == [104, 105, 100, 101, 102]
    features.leave(catching_up, torch.tensor([[55.0], [66.0], [77.0], [88.0]]))
    # Slot 2 did not sample: it goes on where it was.
    on = _ints(rows_of((2, 12, 1, 1), (0, 5, 1, 1)), Bucket.decoding(4), state)
    assert features.of(on).flatten()[:2].tolist() == [103, 55]


def test_a_slot_without_features_finds_finite_numbers() -> None:
    features, state = _features()
    states = HiddenStates((0, 1), [torch.full((8, 1), torch.nan), torch.zeros(8, 1)])
    states.taken[0][:2] = 1.0
    features.keep(_ints(rows_of((2, 9, 2, 1)), Bucket(1, 8), state), states)
    features.leave(_ints(rows_of((2, 9, 1, 0)), Bucket(1, 8), state), torch.full((1, 1), torch.nan))
    for position in range(30):
        found = features.of(_ints(rows_of((0, position, 1, 0), (2, position, 1, 0)), Bucket.decoding(4), state))
        assert bool(found.isfinite().all())


def _progress() -> HeadProgress:
    table = np.arange(40).reshape(4, 10)
    progress = HeadProgress(*table.shape, table.size, 4, 64, forgets=True)
    for slot in range(4):
        progress.append(slot, 0, table[slot, :5], 0)
    return progress


def _step(progress: HeadProgress, rows: StepRows, accepted: int) -> list[list[tuple[int, int, int, int]]]:
    """A step of which every row's guesses are right up to so many."""
    passes = listed(list(progress.passes(rows)))
    guessed = [7] * int(np.maximum(rows.samples - 1, 0).sum())
    chosen = [7 if sample < accepted else 8 for samples in rows.samples.tolist() for sample in range(samples)]
    progress.follow(rows)
    progress.settle(rows, accepted_of(rows, guessed, np.array(chosen)))
    return passes


def test_all_that_can_be_computed_is_computed_before_the_next_step() -> None:
    progress = _progress()
    assert _step(progress, rows_of((0, 0, 4, 0), (1, 0, 5, 1)), 0) == []
    # A row that decodes without guesses catches up as well.
    assert _step(progress, rows_of((1, 5, 1, 1), (0, 4, 3, 1)), 0) == [[(1, 0, 5, 0), (0, 0, 4, 0)]]
    assert _step(progress, rows_of((1, 6, 3, 3), (0, 7, 3, 3)), 2) == [
        [(1, 5, 1, 1), (0, 4, 3, 1)],
        [(1, 6, 1, 1), (0, 7, 1, 1)],
    ]
    assert _step(progress, rows_of((1, 9, 2, 2), (0, 10, 1, 1)), 0) == [[(1, 6, 3, 1), (0, 7, 3, 0)]]


def test_what_it_has_no_features_of_is_left_out() -> None:
    progress = _progress()
    _step(progress, rows_of((0, 0, 6, 1), (1, 0, 6, 1)), 0)
    # Slot 1 was left out of a step, and slot 0 was computed in a step that was not followed.
    assert _step(progress, rows_of((0, 6, 1, 1)), 0) == [[(0, 0, 6, 0)]]
    assert _step(progress, rows_of((0, 8, 1, 1), (1, 6, 1, 1)), 0) == []
    assert progress.computed[:2].tolist() == [8, 6]
    assert _step(progress, rows_of((0, 9, 2, 2), (1, 7, 2, 2)), 0) == [[(0, 8, 1, 1), (1, 6, 1, 1)]]
    # They guess nevertheless, from the token before.
    assert _step(progress, rows_of((0, 13, 2, 2)), 0) == [[(0, 12, 1, 1)]]
    # Whoever takes a slot finds nothing of the one who had it.
    progress.append(0, 0, np.arange(5), 12)
    assert _step(progress, rows_of((0, 14, 2, 1)), 0) == []
