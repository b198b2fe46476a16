"""Ids that steps have sampled get to the host in memory that later steps use again, and not too soon."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from parhelion.engine.device import host_ids
from parhelion.engine.device.host_ids import HostIds
from parhelion.engine.step_result import PendingStep
from parhelion.scheduler import Admission, Row, StepPlan
from tests.e2e.tiny_models import TINY_MODELS
from tests.engine.device_cores import core_of, greedy_and_drawn_requests, prompt_of, run
from tests.engine.requests import add_request
from tests.engine.test_device_worker import QUALITIES, Prophet, texts_of


@pytest.fixture(scope="module")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-llama-for-ids")
    TINY_MODELS[0].write(folder)
    return folder


class LateIds(HostIds):
    """Ids that a device is slow to copy: they are here when somebody waits for them, and not before."""

    made: ClassVar[list[LateIds]] = []

    def __init__(self, num_rows: int, stream: Any, device: torch.device) -> None:
        super().__init__(num_rows, stream, device)
        self._late: torch.Tensor | None = None
        self.done = SimpleNamespace(synchronize=self._arrive)  # type: ignore[assignment]
        self.made.append(self)

    def fetch(self, token_ids: torch.Tensor) -> None:
        assert self._late is None, "another step's have not been read"
        self.array[:] = -1
        self._late = token_ids.clone()

    def _arrive(self) -> None:
        if self._late is not None:
            self.array[:] = self._late.numpy()
            self._late = None


def steps_of_a_request(prompt: Sequence[int], count: int, num_in_flight: int) -> list[StepPlan]:
    """Its prompt and then a token a step, planned while so many steps were under way."""
    admission = Admission("r", 0, tuple(prompt), len(prompt), tuple(range(8)), 0)
    rows = [Row("r", 0, 0, len(prompt), True, 0)]
    rows += [Row("r", 0, len(prompt) + index, 1, True, 1 + index) for index in range(count - 1)]
    return [
        StepPlan(index, (row,), () if index else (admission,), (), num_in_flight=min(index, num_in_flight))
        for index, row in enumerate(rows)
    ]


def test_memory_for_ids_is_another_steps_only_once_they_were_read(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    """However late that is."""
    monkeypatch.setattr(host_ids, "HostIds", LateIds)
    request = add_request("r", prompt_of(5, 1), max_tokens=20, temperature=0.0)
    texts, made = [], []
    for num_in_flight in (0, 1, 4):
        LateIds.made.clear()
        core = core_of(tiny_llama, True, True, 1000)
        tokens: list[int] = []
        pending = deque[PendingStep]()
        for plan in steps_of_a_request(request.prompt_token_ids, 20, num_in_flight):
            pending.append(core._worker.execute(plan, [request] if plan.admissions else []))
            if len(pending) > num_in_flight:
                tokens += pending.popleft().wait().token_ids
        for each in pending:
            tokens += each.wait().token_ids
        core.close()
        texts.append(tokens)
        made.append(len(LateIds.made))
    assert len(texts[0]) == 20
    assert texts == [texts[0]] * 3
    # One step more than are under way: what one has read is free once the next one was handed over.
    assert made == [2, 3, 6]


@pytest.mark.parametrize("guesses", [False, True])
@pytest.mark.parametrize("pp", [1, 3])
def test_an_engine_needs_memory_for_the_ids_of_few_steps(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, pp: int, guesses: bool
):
    """As many steps as there are stages, and one more, may be under way; another one may just have been read."""
    requests = greedy_and_drawn_requests()
    expected = run(core_of(tiny_llama, True, True, 1000), requests)
    prophet = Prophet(texts_of(requests, expected), QUALITIES["one in three wrong"]) if guesses else None
    monkeypatch.setattr(host_ids, "HostIds", LateIds)
    LateIds.made.clear()
    core = core_of(tiny_llama, True, True, 1000, proposer=prophet, pp=pp)
    assert run(core, requests) == expected
    assert max(Counter(len(each.array) for each in LateIds.made).values()) <= 2 + pp
