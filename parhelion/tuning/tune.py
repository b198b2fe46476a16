"""Tuning a model on a device: every row measured, searched where it pays, chosen in the step, and put into a pack."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from parhelion.ops.contract import Contract
from parhelion.ops.source_hash import source_hashes
from parhelion.packs.format import TILE_PROGRAMS, Fingerprint, Ledger, ModelEntry, Pack
from parhelion.packs.location import pack_name
from parhelion.tuning.build_rows import untuned_config
from parhelion.tuning.built_programs import BuiltPrograms
from parhelion.tuning.compile_ahead import CompileAhead
from parhelion.tuning.head_calls import TunedHead
from parhelion.tuning.helion_strategy import OVER_S, HelionSearch, HelionStrategy
from parhelion.tuning.jobs import Compiler, Timer, Trial
from parhelion.tuning.journal import Head, Journal
from parhelion.tuning.measuring import Measuring
from parhelion.tuning.model_calls import TunedModel
from parhelion.tuning.passes import EFFORTS, Passes
from parhelion.tuning.plan import Plan, PlannedRow
from parhelion.tuning.programs import Program
from parhelion.tuning.row_state import RowState, costliest
from parhelion.tuning.seeds import SeedBank
from parhelion.tuning.settled import settled, standing
from parhelion.tuning.step_choices import StepChoices, StepTuner
from parhelion.tuning.target import Target
from parhelion.tuning.tuned_pack import (
    PackFacts,
    held_back,
    read_before,
    tuned_pack,
    versions,
    write,
)

REFINE_SHARE = 0.82
"""Of the budget, until when rows are tuned by themselves; the rest is for tuning steps."""

SEARCH_SHARE = 0.7
"""Of that, until when they are searched among their candidates; then come programmatic versions and neighbours."""

HELION_SHARE = 0.85
"""Of the same, until when Helion's own search may take, if it is asked for. At least one has the time: the search among
candidates ends earlier for it, but keeps half of its share.
"""

COMPARING_SHARE = 0.05
"""Of the budget, what is kept for measuring providers that never serve."""

MOST_SHOWN = 5


@dataclass(frozen=True)
class TuneOptions:
    """What the user says.

    Attributes:
        output: where the pack is written; the journal stands beside it.
        budget_s: seconds in all; what has begun is finished.
        effort: a name of ``EFFORTS``.
        seed_packs: packs whose configs are tried first.
        command: what the pack says that it was made with.
        helion_search_s: seconds that Helion's own search gets for each matrix product that it is asked for; 0: it
            is not asked.
    """

    output: Path
    budget_s: float
    effort: str = "normal"
    seed_packs: tuple[Pack, ...] = ()
    command: str = "parhelion tune"
    helion_search_s: float = 0.0


@dataclass(frozen=True)
class TuneProgress:
    """How far it is.

    Attributes:
        stage: what is done now.
        covered, num_rows: rows that the first pass has been through, of how many.
        current: the row in work; None at first.
        costliest: the rows that take most of their step.
        seconds_left: of the budget.
    """

    stage: str
    covered: int
    num_rows: int
    current: RowState | None
    costliest: tuple[RowState, ...]
    seconds_left: float


@dataclass(frozen=True)
class TuneResult:
    """What came of it.

    Attributes:
        pack: as it was written; None if nothing is known to work.
        rows: what was found out of each.
        notes: what did not go as it should, a sentence each.
        interrupted: the user stopped it.
    """

    pack: Pack | None
    rows: tuple[RowState, ...]
    notes: tuple[str, ...]
    interrupted: bool


def least_budget_s(helion_search_s: float) -> float:
    """The budget that leaves time for one of Helion's searches."""
    return _kept_s(helion_search_s) / ((HELION_SHARE - SEARCH_SHARE / 2) * REFINE_SHARE)


def most_searches(helion_search_s: float, budget_s: float) -> int:
    """How many of Helion's searches a budget leaves time for at most."""
    return int(budget_s * REFINE_SHARE * HELION_SHARE // (helion_search_s + OVER_S))


def _kept_s(helion_search_s: float) -> float:
    """What the search among candidates leaves: it finishes what it has begun, then one of Helion's takes its time."""
    return helion_search_s + 1.5 * OVER_S


def journal_of(output: Path) -> Path:
    """The journal beside a pack."""
    return output.with_name(f"{output.name}.journal.jsonl")


def tune(
    plan: Plan,
    target: Target,
    fingerprint: Fingerprint,
    timer: Timer,
    compiler: Compiler,
    options: TuneOptions,
    *,
    step_tuner: StepTuner | None = None,
    helion_search: HelionSearch | None = None,
    progress: Callable[[TuneProgress], None] = lambda progress: None,
    clock: Callable[[], float] = time.monotonic,
) -> TuneResult:
    """Tune the rows of a plan and write the pack. Rows that the pack has of fewer ranks, or of the same model with an
    output head that is not quantized, stay as they are, and so do those of ops that are not tuned; steps call them.
    Of a draft head, whose passes are not put together here, those of all models stay, and each row's fastest serves.

    An interruption from the keyboard ends it with a pack of what is known. Called again with the same output it goes on
    from the journal.

    Args:
        target, fingerprint: of the device.
        step_tuner: chooses in the step; without one each row's fastest serves.
        helion_search: is asked for configs as well, if the options give it time.
        clock: in seconds.

    Raises:
        ConfigError: the output is something else.
        PackError: what is at the output is damaged.
        GpuError: the device fails for good.
    """
    start = clock()
    before = read_before(options.output, fingerprint)

    def states(planned: Sequence[PlannedRow]) -> list[RowState]:
        return [
            RowState(row, timer.floor_us(row.contract, row.bucket), untuned_config(row.contract, row.bucket, target))
            for row in planned
        ]

    there = None if before is None else before.pack
    step_tuner = None if isinstance(plan.model, TunedHead) else step_tuner
    rows = states(plan.rows)
    of_others = settled(rows, plan.model, there)
    open_rows = [row for row in rows if row not in of_others]
    # Steps call them, and nobody else asks for them.
    left = [] if there is None or step_tuner is None else standing(states(plan.others), there)
    beside = [*of_others, *left]
    ops = {row.contract.name for row in (*rows, *left)}
    head = Head(fingerprint, source_hashes(sorted(ops)), versions(), _now())

    def elapsed() -> float:
        return clock() - start

    ahead = CompileAhead(compiler)
    try:
        with Journal(journal_of(options.output), head) as journal:
            programs = BuiltPrograms(ahead, journal, target, elapsed)
            facts = facts_of(plan.model, (row.contract for row in plan.rows), fingerprint, options.command)

            def save(choices: StepChoices | None) -> tuple[Pack | None, int]:
                served, own = _built_to_serve(open_rows, programs)
                if not served:
                    return None, 0
                ledger = msgspec.structs.replace(_ledger(journal), launch_us=_launch_us(timer, own))
                # Asked now: building may have shown that something cannot serve.
                blocks = () if choices is None else choices.blocks()
                made = tuned_pack(pack_name(options.output), facts, served, own, ledger, blocks, beside)
                return write(made, before, options.output), len(held_back(made.pack, there))

            session = _Session(plan, open_rows, beside, programs, journal, options, progress, elapsed, save)
            session.say_what_stays(len(of_others), len(left))
            return session.run(timer, step_tuner, helion_search)
    finally:
        ahead.close()


def tune_each(
    plans: Sequence[Plan],
    target: Target,
    fingerprint: Fingerprint,
    timer: Timer,
    compiler: Compiler,
    options: TuneOptions,
    *,
    step_tuner: StepTuner | None = None,
    helion_search: HelionSearch | None = None,
    progress: Callable[[TuneProgress], None] = lambda progress: None,
    clock: Callable[[], float] = time.monotonic,
) -> TuneResult:
    """Tune several plans, such as of several numbers of ranks, into one pack; see ``tune``. Each gets an equal share of
    the budget that is left. An interruption ends all of it.
    """
    start = clock()
    rows: tuple[RowState, ...] = ()
    notes: tuple[str, ...] = ()
    for number, plan in enumerate(plans):
        left_s = max(0.0, options.budget_s - (clock() - start)) / (len(plans) - number)
        own = replace(options, budget_s=left_s)
        result = tune(
            plan,
            target,
            fingerprint,
            timer,
            compiler,
            own,
            step_tuner=step_tuner,
            helion_search=helion_search,
            progress=progress,
            clock=clock,
        )
        rows, notes = rows + result.rows, notes + result.notes
        if result.interrupted:
            break
    return replace(result, rows=rows, notes=notes)


def _built_to_serve(
    rows: Sequence[RowState], programs: BuiltPrograms
) -> tuple[list[RowState], dict[RowState, tuple[Program, ...]]]:
    """The rows that someone serves, and the programs of those that a tile program does.

    Timing needs fewer programs than serving. A config of which the others cannot be built is struck, and the row's next
    has its turn.
    """
    while True:
        served = {row: row.serving for row in rows if row.serving is not None}
        configs = {row: each.config for row, each in served.items() if each.provider in TILE_PROGRAMS}
        needed = {row: row.whole_request(config) for row, config in configs.items()}
        attempted = programs.attempted(list(needed.values()))
        own, failed = {}, False
        for row, request in needed.items():
            built = attempted[request]
            if isinstance(built, str):
                row.strike(row.choice(configs[row]), built)
                failed = True
            else:
                own[row] = built
        if not failed:
            return list(served), own


def _launch_us(timer: Timer, own: Mapping[RowState, tuple[Program, ...]]) -> float:
    """What Python takes for one launch of the shortest row that a single program serves; 0 if it cannot be told."""
    # Calls of several launches cost as much more.
    single = [row for row, programs in own.items() if len(programs) == 1]
    if not single:
        return 0.0
    row = min(single, key=lambda each: each.floor_us)
    assert row.serving is not None
    found = timer.launch_us(row.contract, row.bucket, Trial(*row.choice(row.serving.config), own[row]))
    return 0.0 if found is None else round(found, 2)


class _Session:
    """One run of the tuner: its passes, and what is said of them."""

    def __init__(
        self,
        plan: Plan,
        rows: list[RowState],
        beside: list[RowState],
        programs: BuiltPrograms,
        journal: Journal,
        options: TuneOptions,
        progress: Callable[[TuneProgress], None],
        elapsed: Callable[[], float],
        save: Callable[[StepChoices | None], tuple[Pack | None, int]],
    ) -> None:
        self._plan = plan
        self._rows = rows
        self._beside = beside
        self._programs = programs
        self._journal = journal
        self._options = options
        self._progress = progress
        self._elapsed = elapsed
        self._save = save
        self._choices: StepChoices | None = None
        self._stage = ""
        self._covered = 0
        self._notes = [*plan.notes, *journal.notes]

    def say_what_stays(self, of_others: int, left: int) -> None:
        """How many rows stay as the pack has them: of fewer ranks, another head or other models, and of other ops."""
        if of_others:
            whose = "" if self._plan.model.lm_head_quantization is None else ", or of a head that is not quantized"
            whose = ", or of other models" if isinstance(self._plan.model, TunedHead) else whose
            self._notes.append(f"{of_others} rows stay as the pack has them of fewer ranks{whose}")
        if left:
            self._notes.append(f"{left} rows of other ops stay as the pack has them, and steps are measured with them")

    def run(self, timer: Timer, step_tuner: StepTuner | None, helion_search: HelionSearch | None) -> TuneResult:
        """Until all is done, the budget is spent, or the user interrupts."""
        interrupted = False
        try:
            self._run(timer, step_tuner, helion_search)
        except KeyboardInterrupt:
            interrupted = True
            self._programs.cancel()
            self._notes.append("it was interrupted; the same command goes on from here")
        pack, num_held_back = self._save(self._choices)
        self._say_what_is_missing(pack, num_held_back)
        return TuneResult(pack, tuple(self._rows), tuple(self._notes), interrupted)

    def _run(self, timer: Timer, step_tuner: StepTuner | None, helion_search: HelionSearch | None) -> None:
        budget_s = self._options.budget_s
        refined_s = budget_s * (REFINE_SHARE if step_tuner is not None else 1)
        asks_helion = helion_search is not None and self._options.helion_search_s > 0
        search_s = SEARCH_SHARE * refined_s
        if asks_helion:
            left_s = HELION_SHARE * refined_s - _kept_s(self._options.helion_search_s)
            search_s = min(search_s, max(search_s / 2, left_s))
        seeds = SeedBank(self._options.seed_packs, self._plan.target)
        self._notes += seeds.notes
        passes = Passes(
            self._rows,
            self._plan.target,
            Measuring(timer, self._programs, self._journal, self._elapsed, self._show),
            self._programs,
            seeds,
            EFFORTS[self._options.effort],
            self._elapsed,
            search_s,
        )
        self._begin("first pass")
        passes.cover(self._cover)
        self._begin("search")
        passes.search()
        passes.deadline_s = refined_s
        if helion_search is not None and asks_helion:
            self._ask_helion(helion_search, passes, HELION_SHARE * refined_s)
        if step_tuner is not None:
            self._begin("overlap")
            passes.overlap()
        self._begin("refinement")
        passes.refine()
        # What will serve is known but for what steps choose: most of it is built while they are measured.
        self._programs.prepare([request for row in self._rows for request in row.likely_to_serve()])
        model = self._plan.model
        if step_tuner is not None and isinstance(model, TunedModel):
            self._begin("steps")
            self._choices = StepChoices(
                step_tuner, model, self._plan.target, self._programs, self._journal, self._elapsed
            )
            self._notes += self._choices.choose(self._rows, self._beside, budget_s * (1 - COMPARING_SHARE))
        self._begin("compiling providers")
        passes.deadline_s = budget_s
        passes.compare()

    def _ask_helion(self, search: HelionSearch, passes: Passes, deadline_s: float) -> None:
        self._begin("Helion's search")
        strategy = HelionStrategy(
            search,
            self._options.helion_search_s,
            self._journal,
            self._plan.target,
            self._elapsed,
            deadline_s,
            self._show,
        )
        passes.ask(strategy.configs)
        self._notes += strategy.notes(self._rows)

    def _say_what_is_missing(self, pack: Pack | None, num_held_back: int) -> None:
        if pack is None:
            self._notes.append("no pack was written: nobody is known to serve any row")
        if num_held_back:
            self._notes.append(
                f"{num_held_back} rows stay as the pack had them: there was no time to measure steps with what was "
                "found for them; the same command with a longer --budget goes on from here"
            )
        unmet = sum(row.is_unmet for row in self._rows)
        if unmet:
            self._notes.append(f"{unmet} of {len(self._rows)} rows were not measured in the time that there was")
        for row in self._rows:
            if row.serving is None and not row.is_unmet:
                why = "; ".join(f"{name}: {problem}" for (name, _), problem in row.problems.items())
                self._notes.append(
                    f"{row.contract.key()} at M = {row.bucket} is not in the pack: {why or 'no one can'}"
                )
        self._notes += failed_rivals(self._rows)

    def _begin(self, stage: str) -> None:
        self._stage = stage
        self._show(None)

    def _cover(self) -> None:
        self._covered += 1

    def _show(self, row: RowState | None) -> None:
        shown = tuple(costliest(self._rows, MOST_SHOWN))
        left_s = max(0.0, self._options.budget_s - self._elapsed())
        self._progress(TuneProgress(self._stage, self._covered, len(self._rows), row, shown, left_s))


def _ledger(journal: Journal) -> Ledger:
    totals = journal.totals()
    return Ledger(
        tune_s=round(totals.tune_s, 1),
        gpu_s=round(totals.gpu_s, 1),
        compile_s=round(totals.compile_s, 1),
        num_compiled=totals.num_compiled,
        num_dropped=totals.num_dropped,
        num_timed=totals.num_timed,
    )


def facts_of(
    model: TunedModel | TunedHead, contracts: Iterable[Contract], fingerprint: Fingerprint, command: str
) -> PackFacts:
    """What a pack says of itself whose rows are of these contracts of a model."""
    keys = tuple(dict.fromkeys(contract.key() for contract in contracts))
    entry = ModelEntry(model.name, model.quantization.name, keys, model.tp, model.lm_head_quantization)
    return PackFacts(fingerprint, command, _now(), (entry,))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def failed_rivals(rows: Iterable[RowState]) -> list[str]:
    """Which other providers failed at rows that somebody serves, and why: a sentence for each contract and reason."""
    found: dict[tuple[str, str, str], list[int]] = {}
    for row in rows:
        for (provider, _), problem in row.problems.items() if row.serving is not None else ():
            if provider not in TILE_PROGRAMS:
                found.setdefault((row.contract.key(), provider, problem), []).append(row.bucket)
    return [
        f"{contract} at M = {', '.join(map(str, buckets))} was not timed with {provider}: {problem}"
        for (contract, provider, problem), buckets in found.items()
    ]
