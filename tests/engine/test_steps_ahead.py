"""Steps that a device's draft model or head guesses for, planned before the step under way has checked its guesses."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import accumulate, count, pairwise, takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from parhelion.config import EngineConfig
from parhelion.engine import core as core_module
from parhelion.engine.device import drafter as drafter_module
from parhelion.engine.device.state import DeviceState, StepTensors
from parhelion.engine.drafts.choice import read_draft, speculator
from parhelion.engine.load import load_model
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.scheduler import StepPlan
from parhelion.speculative import Drafting, Pace
from tests.e2e.draft_models import leave_out_layers
from tests.e2e.eagle3_scratch import write_fitted_head, write_random_head
from tests.e2e.tiny_models import TINY_MODELS
from tests.engine.device_cores import MOST_GUESSES, core_of, greedy_and_drawn_requests, prompt_of, run
from tests.engine.requests import add_request

DRAFTS = ["same-model", "shorter-model", "head"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a target and the drafts."""
    folder = tmp_path_factory.mktemp("steps-ahead")
    target = folder / "target"
    TINY_MODELS[0].write(target)
    leave_out_layers(target, (), folder / "same-model")
    leave_out_layers(target, {1}, folder / "shorter-model")
    model = load_model(EngineConfig(model=str(target), dtype="float32", device="cpu", threads=1), target).model
    write_fitted_head(write_random_head(model, folder / "random-head"), folder / "head")
    return folder


class Watched:
    """A worker of which is noted what it is told to do and what it guesses.

    Attributes:
        plans: all of them.
        guesses: of each step.
    """

    def __init__(self, worker: Any) -> None:
        self.plans: list[StepPlan] = []
        self.guesses: list[list[int]] = []
        self._worker = worker

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        self.plans.append(plan)
        return _WatchedStep(self._worker.execute(plan, admitted), self)

    @property
    def rows_ahead(self) -> int:
        """Rows behind guesses that were not checked when they were planned."""
        return sum(row.unchecked > 0 for plan in self.plans for row in plan.rows)


class _WatchedStep:
    def __init__(self, step: PendingStep, watched: Watched) -> None:
        self._step, self._watched = step, watched

    def wait(self) -> StepResult:
        result = self._step.wait()
        if result.drafted is not None:
            self._watched.guesses.append(result.drafted.token_ids)
        return result


def watched_core(folder: Path, draft: str, overlap: bool = True, num_blocks: int = 1000, **options: Any) -> Any:
    core = core_of(folder / "target", True, overlap, num_blocks, draft=folder / draft, **options)
    watched = Watched(core._worker)
    core._worker = watched
    return core, watched


def plain(folder: Path, requests: Sequence[AddRequest]) -> dict[str, list[Any]]:
    return run(core_of(folder / "target", True, True, 1000), requests)


def some_requests() -> list[AddRequest]:
    """The first four say what the head was fitted to."""
    fitted = [
        add_request(f"fitted{first}", [first, first + 1], max_tokens=20, temperature=0.0) for first in range(2, 6)
    ]
    return [*fitted, *greedy_and_drawn_requests()]


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, list[Any]]:
    """What they say without guesses."""
    return plain(folder, some_requests())


@pytest.mark.parametrize("draft", DRAFTS)
def test_two_steps_with_guesses_are_under_way_at_once(folder: Path, draft: str, expected: dict[str, list[Any]]) -> None:
    core, watched = watched_core(folder, draft)
    outputs = run(core, some_requests()[:4])
    assert outputs == {name: expected[name] for name in outputs}
    both = [
        plan.step
        for before, plan in pairwise(watched.plans)
        if plan.num_in_flight == 1
        and all(any(row.guesses for row in each.rows) for each in (before, plan))
        and all(row.unchecked == len(last.guesses) for row, last in zip(plan.rows, before.rows, strict=False))
    ]
    assert len(both) >= 3
    assert core.stats().accepted_tokens_total > 0


@pytest.mark.parametrize("max_num_seqs", [1, 3, 5])
@pytest.mark.parametrize("draft", DRAFTS)
def test_texts_and_draws_are_those_without_guesses(
    folder: Path, draft: str, max_num_seqs: int, expected: dict[str, list[Any]]
) -> None:
    core, watched = watched_core(folder, draft, max_num_seqs=max_num_seqs)
    assert run(core, some_requests()) == expected
    assert watched.rows_ahead > 40
    assert core.stats().accepted_tokens_total > 10


@pytest.mark.parametrize("draft", DRAFTS)
def test_rows_of_a_request_follow_one_another_however_many_guesses_were_wrong(
    folder: Path, draft: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So programs of attention tell, from slots and lengths alone, which keys are those of the step's own tokens."""
    steps: list[tuple[int, list[int], list[int]]] = []
    made = DeviceState.tensors

    def noting(*arguments: Any, **options: Any) -> StepTensors:
        tensors = made(*arguments, **options)
        step = tensors.batch.attention
        if step.row_slots is not None:
            steps.append((step.max_siblings, step.row_slots.tolist(), step.seq_lens.tolist()))
        return tensors

    monkeypatch.setattr(DeviceState, "tensors", noting)
    core, watched = watched_core(folder, draft)
    run(core, some_requests())
    assert watched.rows_ahead > 40
    found = 0
    for bound, slots, lengths in steps:
        rows = list(zip(slots, lengths, strict=True))
        for number, (slot, length) in enumerate(rows):
            before = [each for each in range(number) if rows[each][0] == slot and length > 0]
            assert before == list(range(number - len(before), number))
            assert [length - rows[each][1] for each in before] == [number - each for each in before]
            assert len(before) < bound
            found += len(before)
    assert found > 100


@pytest.mark.parametrize("draft", DRAFTS)
def test_without_overlap_no_step_is_planned_ahead(folder: Path, draft: str, expected: dict[str, list[Any]]) -> None:
    core, watched = watched_core(folder, draft, overlap=False)
    assert run(core, some_requests()) == expected
    assert watched.rows_ahead == 0
    assert {plan.num_in_flight for plan in watched.plans} == {0}
    assert core.stats().accepted_tokens_total > 10


@pytest.mark.parametrize("draft", DRAFTS)
def test_alone_a_request_is_guessed_for_as_if_its_steps_were_not_ahead(folder: Path, draft: str) -> None:
    """As long as there is room for all guesses, whichever are right, no step is lost and no guess is another."""
    request = add_request("r", [2, 3], max_tokens=80, temperature=0.0)
    guesses = []
    for overlap in (True, False):
        core, watched = watched_core(folder, draft, overlap)
        run(core, [request])
        guesses.append([each for each in watched.guesses if each])
    ahead, settled = guesses
    whole = list(takewhile(lambda each: len(each) == MOST_GUESSES, ahead))
    assert len(whole) >= 12
    assert whole == settled[: len(whole)]


@pytest.mark.parametrize("draft", DRAFTS)
def test_stop_ids_and_lengths_end_texts_where_they_would_without_guesses(
    folder: Path, draft: str, expected: dict[str, list[Any]]
) -> None:
    stopping = [
        add_request(
            request.request_id,
            request.prompt_token_ids,
            max_tokens=1 + index % 7 if index % 3 == 0 else 20,
            stop_token_ids=[expected[request.request_id][4 + index % 9][0]] if index % 3 else [],
            temperature=request.params.temperature,
            top_k=request.params.top_k,
            top_p=request.params.top_p,
            min_p=request.params.min_p,
            seed=request.seed,
        )
        for index, request in enumerate(some_requests())
    ]
    core, watched = watched_core(folder, draft, num_blocks=40)
    assert run(core, stopping) == plain(folder, stopping)
    assert watched.rows_ahead > 10


@pytest.mark.parametrize("draft", DRAFTS)
@pytest.mark.parametrize("num_blocks", [1000, 30], ids=["room for all", "preemptions"])
def test_aborts_leave_the_others_texts_alone(
    folder: Path, draft: str, num_blocks: int, expected: dict[str, list[Any]]
) -> None:
    requests = some_requests()
    core, watched = watched_core(folder, draft, num_blocks=num_blocks)
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
    aborted: set[str] = set()
    for request in requests:
        core.add(request)
    while core.has_work:
        for output in core.step():
            assert output.request_id not in aborted
            outputs[output.request_id].append(output.token_id)
        core.check_integrity()
        for index, request in enumerate(requests):
            name = request.request_id
            if index % 4 == 1 and len(outputs[name]) >= index and name not in aborted:
                core.abort(name)
                aborted.add(name)
    core.close()
    for name, tokens in outputs.items():
        told = [token for token, *_ in expected[name]]
        assert tokens == (told[: len(tokens)] if name in aborted else told), name
    assert len(aborted) >= 3
    assert watched.rows_ahead > 20


@pytest.mark.parametrize("draft", DRAFTS)
def test_steps_that_the_host_samples_know_where_their_rows_begin(folder: Path, draft: str) -> None:
    """They come and go beside others: penalties, biases, fewest tokens, log-probabilities of outputs and prompts."""
    params: list[dict[str, Any]] = [
        {"repetition_penalty": 1.3, "logprobs": 2},
        {"min_tokens": 7, "stop_token_ids": list(range(2, 300))},
        {"logit_bias": {5: 2.0}},
        {"prompt_logprobs": 1},
        {"frequency_penalty": 0.7, "temperature": 0.8, "seed": 3},
    ]
    on_host = [
        add_request(f"host{index}", prompt_of(3 + 7 * index, index), max_tokens=9, **({"temperature": 0.0} | each))
        for index, each in enumerate(params)
    ]
    others = some_requests()
    requests = [each for pair in zip(others, on_host, strict=False) for each in pair] + others[len(on_host) :]
    expected = plain(folder, requests)
    core, watched = watched_core(folder, draft)
    got = run(core, requests)
    assert {name: [token for token, *_ in each] for name, each in got.items()} == {
        name: [token for token, *_ in each] for name, each in expected.items()
    }
    for (_, one, ones), (_, other, others_) in zip(got["host0"], expected["host0"], strict=True):
        assert one.top_ids == other.top_ids
        assert ones is others_ is None
    assert len(got["host3"][0][2]) == len(expected["host3"][0][2])
    assert watched.rows_ahead > 40


class Sooner:
    """A worker that waits for a step as soon as it has begun it, or for the one before: what it makes of the next plan
    must not depend on that.
    """

    def __init__(self, worker: Any, at_once: bool) -> None:
        self._worker, self._at_once = worker, at_once
        self._last: PendingStep | None = None

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        if self._last is not None:
            self._last.wait()
        self._last = self._worker.execute(plan, admitted)
        if self._at_once:
            self._last.wait()
        return self._last


@pytest.mark.parametrize("draft", DRAFTS)
def test_what_is_guessed_does_not_depend_on_when_steps_are_waited_for(folder: Path, draft: str) -> None:
    found = []
    for way in ("as ever", "before the next", "at once"):
        core, watched = watched_core(folder, draft, num_blocks=40)
        if way != "as ever":
            watched._worker = Sooner(watched._worker, at_once=way == "at once")
        outputs = run(core, some_requests())
        found.append((outputs, watched.guesses, [plan.rows for plan in watched.plans]))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("draft", DRAFTS)
def test_auto_rests_and_returns_while_steps_are_planned_ahead(
    folder: Path, draft: str, expected: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Steps take long or short, so that guesses pay now and then.
    times = accumulate(random.Random(each).random() ** 4 for each in count())
    monkeypatch.setattr(core_module, "time", SimpleNamespace(perf_counter=times.__next__))
    moment = SimpleNamespace(seconds_until=lambda later: 0.01)
    monkeypatch.setattr(drafter_module, "mark", lambda device: moment)
    guesser = Drafting(MOST_GUESSES, 0.05, Pace(), needs_states=draft == "head", on_device=True)
    core, watched = watched_core(folder, draft, max_num_seqs=2, speculation=guesser)
    assert run(core, some_requests()) == expected
    assert watched.rows_ahead > 0
    begins, ends = (
        [(before, plan) for before, plan in pairwise(watched.plans) if (before.follows, plan.follows) == change]
        for change in ((True, False), (False, True))
    )
    assert len(begins) >= 2
    assert len(ends) >= 2
    # A rest begins behind guesses that are not checked, and ends behind a step without any.
    assert any(row.unchecked for _, plan in begins for row in plan.rows)
    assert any(plan.num_in_flight == 1 for _, plan in ends)


@pytest.mark.parametrize(("on_gpu", "pp"), [(True, 1), (False, 1), (True, 2)])
def test_it_is_for_guesses_of_a_gpus_model_that_is_not_in_stages(folder: Path, on_gpu: bool, pp: int) -> None:
    for draft, way in (("same-model", "draft"), ("head", "eagle3"), ("head", "auto")):
        config = EngineConfig(
            model=str(folder / "target"), draft_model=str(folder / draft), speculate=cast(Any, way), pp=pp
        )
        guesser = speculator(config, read_draft(folder / draft), on_gpu=on_gpu)
        assert guesser is not None
        assert guesser.needs_tokens == (not on_gpu or pp > 1)
        guesser.begin_step(1, 1)
        assert guesser.plans_ahead == (guesser.is_resting or not guesser.needs_tokens)


@pytest.mark.parametrize("draft", DRAFTS)
def test_a_worker_may_go_on_with_another_cores_steps(folder: Path, draft: str, expected: dict[str, list[Any]]) -> None:
    """These are counted from the first one again."""
    first, watched = watched_core(folder, draft)
    assert run(first, some_requests()) == expected
    second, again = watched_core(folder, draft)
    again._worker = watched._worker
    assert run(second, some_requests()) == expected
    # What it has in its cache is no longer looked up, and all else is as in a new one.
    assert again.guesses == watched.guesses
