"""Tokens that a step under way is sampling while the next step of their requests is planned already.

The last stage of a pipeline samples them, and the first one has to know them before it begins the next step.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from parhelion.scheduler import AWAITED, Row, StepPlan


class AwaitedTokens:
    """Puts them into plans once they are known.

    Args:
        num_stages: a plan awaits no step that so many others and one more came behind.
    """

    def __init__(self, num_stages: int) -> None:
        self._num_kept = num_stages + 1
        self._rows: dict[int, tuple[Row, ...]] = {}
        self._sampled: dict[int, dict[str, int]] = {}

    def note(self, plan: StepPlan) -> None:
        """A step is under way."""
        self._rows[plan.step] = plan.rows
        for step in [step for step in self._rows if step < plan.step - self._num_kept]:
            del self._rows[step]
            self._sampled.pop(step, None)

    def take(self, step: int, token_ids: Sequence[int]) -> None:
        """A step has sampled these, row after row."""
        sampled, first = {}, 0
        for row in self._rows.get(step, ()):
            if row.num_samples == 1:
                sampled[row.request_id] = token_ids[first]
            first += row.num_samples
        self._sampled[step] = sampled

    def is_known(self, plan: StepPlan) -> bool:
        """Whether nothing is lacking any more of what a plan awaits."""
        return plan.awaits is None or plan.awaits in self._sampled

    def put_into(self, plan: StepPlan) -> StepPlan:
        """The plan with all first tokens; ``is_known``."""
        if plan.awaits is None:
            return plan
        sampled = self._sampled[plan.awaits]
        rows = tuple(
            msgspec.structs.replace(row, first_token=sampled[row.request_id]) if row.first_token == AWAITED else row
            for row in plan.rows
        )
        return msgspec.structs.replace(plan, rows=rows, awaits=None)
