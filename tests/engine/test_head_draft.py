"""An EAGLE-3 head on the host that does not follow all steps changes no token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parhelion.config import EngineConfig
from parhelion.engine.host.worker import Worker
from parhelion.engine.load import load_model
from parhelion.scheduler import StepPlan
from parhelion.speculative import Drafting, Pace
from tests.e2e.eagle3_scratch import write_fitted_head, write_random_head
from tests.e2e.tiny_models import TINY_MODELS
from tests.engine.device_cores import MOST_GUESSES, core_of, greedy_and_drawn_requests, run

MOST_LAG = 16
"""Tokens after which a request that nobody guesses for is caught up with."""


class Restful(Drafting):
    """Guesses for a few steps, and rests for longer than a request may be ahead."""

    def __init__(self, needs_states: bool) -> None:
        super().__init__(MOST_GUESSES, 0.5, Pace(), needs_states)

    def _best(self, num_rows: int) -> int:
        return 3 if self._num_steps % (MOST_LAG + 8) < 7 else 0


@pytest.mark.parametrize(
    ("needs_states", "num_blocks"),
    [(True, 1000), (False, 34)],
    ids=["follows a step first", "guesses at once, preempted"],
)
def test_long_rests_change_no_token(
    tmp_path: Path, needs_states: bool, num_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts come in chunks, of which it follows some; slots are taken again while it rests."""
    target = tmp_path / "target"
    TINY_MODELS[0].write(target)
    model = load_model(EngineConfig(model=str(target), dtype="float32", device="cpu", threads=1), target).model
    head = write_fitted_head(write_random_head(model, tmp_path / "random"), tmp_path / "fitted")
    expected = run(core_of(target, False, True, 1000), greedy_and_drawn_requests())
    followed: list[bool] = []
    original = Worker.execute

    def execute(self: Any, plan: StepPlan, admitted: Any) -> Any:
        followed.append(plan.follows)
        return original(self, plan, admitted)

    monkeypatch.setattr(Worker, "execute", execute)
    # Planned ahead, a step right behind a rest has no guesses in any case.
    core = core_of(target, False, needs_states, num_blocks, draft=head, speculation=Restful(needs_states))
    assert run(core, greedy_and_drawn_requests()) == expected
    stats = core.stats()
    assert (stats.preemptions_total > 0) == (num_blocks == 34)
    assert stats.guessed_tokens_total > 40
    rests = "".join(" x"[each] for each in followed).split("x")
    assert max(map(len, rests)) >= MOST_LAG
