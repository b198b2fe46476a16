"""Timing the trials of rows, each once: what the journal knows is not repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from parhelion.ops.kernel_timer import Timing
from parhelion.packs.format import TILE_PROGRAMS
from parhelion.tuning.built_programs import BuiltPrograms
from parhelion.tuning.jobs import Outcome, Timer, TimingJob, Trial
from parhelion.tuning.journal import Journal, Timed
from parhelion.tuning.programs import plain
from parhelion.tuning.row_state import Choice, RowState


class Measuring:
    """Times on the device.

    Args:
        timer: the device's.
        programs: what was built.
        journal: takes the outcomes.
        elapsed: seconds since the session began.
        met: told of every row that has a new outcome.
    """

    def __init__(
        self,
        timer: Timer,
        programs: BuiltPrograms,
        journal: Journal,
        elapsed: Callable[[], float],
        met: Callable[[RowState], None],
    ) -> None:
        self._timer = timer
        self._programs = programs
        self._journal = journal
        self._elapsed = elapsed
        self._met = met

    def outcomes(
        self, row: RowState, choices: Sequence[Choice], timing: Timing, check: bool, deadline_s: float
    ) -> dict[Choice, Outcome]:
        """Of those that were timed before the deadline, by the session's clock. The row takes each in as it comes."""
        found: dict[Choice, Outcome] = {}
        missing = []
        for choice in dict.fromkeys(choices):
            timed = self._known(row, choice, timing, check)
            if timed is None:
                missing.append(choice)
            else:
                found[choice] = self._take(row, choice, timed)
        if missing and self._elapsed() < deadline_s:
            for choice, timed in self._timed(row, missing, timing, check, deadline_s):
                self._journal.add(timed)
                found[choice] = self._take(row, choice, timed)
        return {choice: found[choice] for choice in choices if choice in found}

    def _take(self, row: RowState, choice: Choice, timed: Timed) -> Outcome:
        outcome = Outcome(*choice, timed.time_us, timed.rel_err, timed.problem, timed.workspace_bytes)
        row.met(choice, outcome, timed.gpu_s, is_final=timed.checked)
        self._met(row)
        return outcome

    def _timed(
        self, row: RowState, choices: Sequence[Choice], timing: Timing, check: bool, deadline_s: float
    ) -> Iterator[tuple[Choice, Timed]]:
        requests = {choice: row.request(choice[1]) for choice in choices if choice[0] in TILE_PROGRAMS}
        programs = self._programs.programs(list(requests.values()))
        trials = tuple(Trial(*choice, programs[requests[choice]] if choice in requests else ()) for choice in choices)
        job = TimingJob(row.contract, row.bucket, trials, timing, check)
        since = self._elapsed()
        for index, outcome in self._timer.run(job, deadline_s - since):
            now = self._elapsed()
            provider, config = choices[index]
            yield (
                choices[index],
                Timed(
                    row.contract.key(),
                    row.bucket,
                    provider,
                    plain(config),
                    timing.rounds,
                    check,
                    outcome.time_us,
                    outcome.rel_err,
                    outcome.problem,
                    outcome.workspace_bytes,
                    now - since,
                    now,
                ),
            )
            since = now

    def _known(self, row: RowState, choice: Choice, timing: Timing, check: bool) -> Timed | None:
        provider, config = choice
        return self._journal.timed(row.contract.key(), row.bucket, provider, plain(config), timing.rounds, check)
