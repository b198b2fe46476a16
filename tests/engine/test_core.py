"""The engine core around a worker that computes nothing: overlap, aborts, refusals, failures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import pytest

from parhelion.engine.core import EngineCore
from parhelion.engine.messages import AddRequest, TokenLogprob, TokenOutput
from parhelion.engine.step_result import PendingStep, PromptLogprobs, StepResult
from parhelion.errors import InvalidRequestError, QueueFullError
from parhelion.scheduler import StepPlan

from .noop import NoOpExecutor, assert_empty, make_core, token_of
from .requests import add_request

MakeCore = Callable[..., EngineCore]


@pytest.fixture
def executor() -> NoOpExecutor:
    return NoOpExecutor()


@pytest.fixture
def make(executor: NoOpExecutor) -> Iterator[MakeCore]:
    opened: list[EngineCore] = []

    def open_core(**options: int) -> EngineCore:
        opened.append(make_core(executor, **options))
        return opened[-1]

    yield open_core
    for core in opened:
        core.close()


def run_to_end(core: EngineCore) -> dict[str, list[TokenOutput]]:
    """Outputs by request."""
    outputs = defaultdict(list)
    for _ in range(1000):
        if not core.has_work:
            return outputs
        for token in core.step():
            outputs[token.request_id].append(token)
    raise AssertionError("the core has work without end")


@pytest.mark.parametrize("overlap", [True, False])
def test_every_request_gets_its_tokens_in_order_and_ends(make: MakeCore, executor: NoOpExecutor, overlap: bool) -> None:
    core = make(overlap=overlap)
    for index in range(10):
        core.add(add_request(f"r{index}/0", range(2, 9 + 3 * index), max_tokens=3 + index))
    outputs = run_to_end(core)
    for index in range(10):
        tokens = outputs[f"r{index}/0"]
        assert [token.token_id for token in tokens] == [token_of(f"r{index}/0", i) for i in range(3 + index)]
        assert [token.finish_reason for token in tokens] == [None] * (2 + index) + ["length"]
    assert [plan.step for plan in executor.plans] == list(range(len(executor.plans)))
    assert len(executor.threads) == 1, "all steps run on the worker's own thread"
    assert_empty(core)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_stop_id_ends_the_request_and_the_step_planned_past_it_is_dropped(make: MakeCore, overlap: bool) -> None:
    core = make(overlap=overlap)
    core.add(add_request(stop_token_ids=[token_of("r/0", 2)], max_tokens=30))
    tokens = run_to_end(core)["r/0"]
    assert len(tokens) == 3
    assert (tokens[-1].finish_reason, tokens[-1].stop_token_id) == ("stop", token_of("r/0", 2))
    assert_empty(core)


def test_with_overlap_the_next_step_runs_before_anyone_takes_in_the_last(
    make: MakeCore, executor: NoOpExecutor
) -> None:
    core = make(overlap=True)
    core.add(add_request(max_tokens=20))
    assert len(core.step()) == 1
    assert executor.second_step.wait(10), "step 1 was handed to the worker together with step 0"
    assert executor.plans[1].rows[0].start == 3, "it goes on from a token that only the worker knows"


def test_overlap_is_never_deeper_than_one_step(make: MakeCore, executor: NoOpExecutor) -> None:
    taken_in = 0
    depths = []
    # A step is handed over when all but one of those before it are taken in, so this holds however late it is read.
    executor.before = lambda plan: depths.append(plan.step - taken_in)
    core = make(overlap=True)
    core.add(add_request(max_tokens=20))
    while core.has_work:
        core.step()
        taken_in += 1
    assert max(depths) <= 1


def test_without_overlap_nothing_runs_until_the_last_step_is_taken_in(make: MakeCore, executor: NoOpExecutor) -> None:
    core = make(overlap=False)
    core.add(add_request(max_tokens=5))
    for step in range(5):
        core.step()
        assert len(executor.plans) == step + 1
        assert not executor.second_step.is_set() or step > 0
    assert_empty(core)


@pytest.mark.parametrize("overlap", [True, False])
def test_an_abort_with_a_step_in_flight_frees_the_blocks_at_once_and_drops_the_late_token(
    make: MakeCore, overlap: bool
) -> None:
    core = make(overlap=overlap)
    core.add(add_request("gone/0", range(2, 8), max_tokens=20))
    core.add(add_request("stays/0", range(20, 26), max_tokens=6))
    first = {token.request_id for token in core.step()}
    assert first == {"gone/0", "stays/0"}
    assert core.abort("gone/0")
    assert core.stats().num_running == 1
    core.check_integrity()
    outputs = run_to_end(core)
    assert set(outputs) == {"stays/0"}
    assert len(outputs["stays/0"]) == 5
    assert_empty(core)


def test_aborting_everything_in_flight_leaves_an_empty_core_that_takes_the_same_names_again(make: MakeCore) -> None:
    core = make()
    core.add(add_request(max_tokens=20))
    core.step()
    assert core.abort("r/0")
    assert core.stats().num_blocks_in_use == 0
    core.add(add_request(prompt=[30, 31], max_tokens=2))
    assert [token.token_id for token in run_to_end(core)["r/0"]] == [token_of("r/0", 0), token_of("r/0", 1)]
    assert_empty(core)


def test_aborting_what_is_unknown_waiting_or_over(make: MakeCore) -> None:
    core = make()
    assert not core.abort("nobody/0")
    core.add(add_request(max_tokens=1))
    assert core.abort("r/0"), "it was waiting"
    assert not core.has_work
    core.add(add_request(max_tokens=1))
    run_to_end(core)
    assert not core.abort("r/0")


def test_refused_requests_leave_no_trace_and_harm_nobody(make: MakeCore) -> None:
    core = make(max_queue_len=2)
    core.add(add_request("a/0", max_tokens=2))
    with pytest.raises(InvalidRequestError, match="in use"):
        core.add(add_request("a/0"))
    with pytest.raises(InvalidRequestError, match="no tokens"):
        core.add(add_request("empty/0", []))
    with pytest.raises(InvalidRequestError, match="max_model_len = 64"):
        core.add(add_request("long/0", [5] * 64))
    core.add(add_request("b/0", max_tokens=2))
    with pytest.raises(QueueFullError, match="max_queue_len is 2"):
        core.add(add_request("c/0"))
    outputs = run_to_end(core)
    assert {name: len(tokens) for name, tokens in outputs.items()} == {"a/0": 2, "b/0": 2}
    assert_empty(core)


@pytest.mark.parametrize("overlap", [True, False])
def test_preempted_requests_get_the_same_tokens(make: MakeCore, overlap: bool) -> None:
    core = make(num_blocks=12, overlap=overlap)
    for index in range(4):
        core.add(add_request(f"r{index}/0", range(2 + index, 10 + index), max_tokens=24))
    outputs = run_to_end(core)
    assert core.stats().preemptions_total > 0
    for name, tokens in outputs.items():
        assert [token.token_id for token in tokens] == [token_of(name, i) for i in range(24)]
    assert_empty(core)


def test_stats_count_what_came_in_and_went_out(make: MakeCore, executor: NoOpExecutor) -> None:
    core = make()
    core.add(add_request("a/0", range(2, 8), max_tokens=3))
    core.add(add_request("b/0", range(20, 25), max_tokens=4))
    assert (core.stats().num_waiting, core.stats().num_running) == (2, 0)
    run_to_end(core)
    stats = core.stats()
    assert (stats.prompt_tokens_total, stats.generation_tokens_total) == (11, 7)
    assert stats.steps_total == len(executor.plans)
    assert stats.num_blocks == 64


def test_what_the_worker_raises_reaches_the_caller(make: MakeCore, executor: NoOpExecutor) -> None:
    executor.fail_at = 1
    core = make()
    core.add(add_request(max_tokens=20))
    core.step()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the device is gone"):
            core.step()


class InterruptedExecutor(NoOpExecutor):
    """Whoever waits for the second step is interrupted once."""

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        result = super().execute(plan, admitted)
        return Interruption(result) if plan.step == 1 else result


class Interruption:
    """A step on its way."""

    def __init__(self, result: StepResult) -> None:
        self._result = result
        self._is_first = True

    def wait(self) -> StepResult:
        if self._is_first:
            self._is_first = False
            raise KeyboardInterrupt
        return self._result


@pytest.mark.parametrize("overlap", [True, False])
def test_an_interrupt_while_a_step_is_waited_for_ends_nothing(overlap: bool) -> None:
    core = make_core(InterruptedExecutor(), overlap=overlap)
    core.add(add_request("kept/0", max_tokens=5))
    core.add(add_request("dropped/0", max_tokens=5))
    first = [token.token_id for token in core.step() if token.request_id == "kept/0"]
    with pytest.raises(KeyboardInterrupt):
        core.step()
    core.abort("dropped/0")
    outputs = run_to_end(core)
    assert first + [token.token_id for token in outputs["kept/0"]] == [token_of("kept/0", i) for i in range(5)]
    assert not outputs["dropped/0"]
    assert_empty(core)
    core.close()


def logprob(token_id: int) -> TokenLogprob:
    return TokenLogprob(token_id, -1.0, 1, [], [])


class LogprobExecutor(NoOpExecutor):
    """Answers with log-probabilities too: of outputs for the request ``with/0``, of every prompt token it computes."""

    def execute(self, plan, admitted) -> StepResult:
        result = super().execute(plan, admitted)
        sampled = [row for row in plan.rows if row.samples]
        logprobs = [
            logprob(token) if row.request_id.startswith("with/") else None
            for row, token in zip(sampled, result.token_ids, strict=True)
        ]
        return StepResult(result.token_ids, logprobs, [self._prompt(row) for row in plan.rows if row.num_tokens > 1])

    @staticmethod
    def _prompt(row) -> PromptLogprobs:
        first = row.start + 1
        count = row.num_tokens - row.samples
        return PromptLogprobs(row.request_id, first, [logprob(first + index) for index in range(count)])


def test_logprobs_go_to_the_requests_they_belong_to() -> None:
    core = make_core(LogprobExecutor())
    core.add(add_request("without/0", max_tokens=3))
    core.add(add_request("with/0", range(20, 23), max_tokens=3))
    outputs = run_to_end(core)
    core.close()
    assert [token.logprob for token in outputs["without/0"]] == [None] * 3
    assert [token.logprob for token in outputs["with/0"]] == [logprob(token_of("with/0", i)) for i in range(3)]


def test_prompt_logprobs_of_all_chunks_come_whole_with_the_first_token() -> None:
    core = make_core(LogprobExecutor())
    core.add(add_request("r/0", range(40), max_tokens=3, prompt_logprobs=0))
    tokens = run_to_end(core)["r/0"]
    core.close()
    assert tokens[0].prompt_logprobs == [logprob(position) for position in range(1, 40)]
    assert [token.prompt_logprobs for token in tokens[1:]] == [None, None]


def test_closing_with_steps_in_flight_ends_the_worker_thread(executor: NoOpExecutor) -> None:
    running = []
    executor.before = lambda plan: running.append(plan.step)
    core = make_core(executor)
    core.add(add_request(max_tokens=20))
    core.step()
    core.close()
    seen = list(running)
    with pytest.raises(RuntimeError, match="shutdown"):
        core.step()
    assert running == seen


def test_plans_are_what_the_scheduler_says_and_within_the_budget(make: MakeCore, executor: NoOpExecutor) -> None:
    core = make()
    for index in range(6):
        core.add(add_request(f"r{index}/0", range(2, 30), max_tokens=4))
    run_to_end(core)
    plans: list[StepPlan] = executor.plans
    assert all(0 < plan.num_tokens <= 16 for plan in plans)
    assert all(len(plan.rows) <= 4 for plan in plans)
