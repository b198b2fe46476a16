"""The tuner's way through the rows: everything once, then what costs the step most, again and again."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.kernel_timer import Timing
from parhelion.ops.launching import BUCKETS
from parhelion.packs.format import TILE_PROGRAMS
from parhelion.tuning.built_programs import BuiltPrograms
from parhelion.tuning.jobs import Outcome, Request
from parhelion.tuning.measuring import Measuring
from parhelion.tuning.neighbours import neighbours
from parhelion.tuning.plan import grouped, program_bucket
from parhelion.tuning.programmatic_twins import is_programmatic, launched_plainly, twins
from parhelion.tuning.prune import algorithm, gemm_of, kept, ranked
from parhelion.tuning.row_state import RowState, step_us
from parhelion.tuning.search import FULL, search
from parhelion.tuning.seeds import SeedBank, Winner, nearest
from parhelion.tuning.stopping import has_gained, is_done, share_to_gain

LOOK_AHEAD = 64
"""Requests that the compiler is given before they are wanted, at least those of one group of rows."""

FOLLOWED = 6
"""Of the configs of a group's largest row, how many its other rows, which launch the same programs, try as well."""

FIRST_OF_OTHERS = 6
"""Candidates of algorithms that no seed is of, where else only what is near seeds is tried."""

SHORTLIST = 3
"""Of a row, how many may be chosen among in a step."""

Group = list[RowState]
"""Rows that launch the same programs."""


@dataclass(frozen=True)
class Effort:
    """How much is tried.

    Attributes:
        gemms, others: candidates of a row, at most, not counting refinements; of other ops than GEMMs no model says
            which differ, so their neighbours come first.
        refinements: rounds of neighbours, at most.
    """

    gemms: int
    others: int
    refinements: int

    def candidates(self, contract: Contract, target: GemmTarget) -> int:
        """Of a row of a contract."""
        return self.others if gemm_of(contract, target) is None else self.gemms


EFFORTS = {"quick": Effort(12, 6, 1), "normal": Effort(40, 20, 4), "full": Effort(160, 160, 8)}


class Passes:
    """Works on rows.

    Args:
        rows: all of them.
        target: as configs know it.
        measuring, programs: time and build.
        seeds: what packs know.
        effort: how much is tried.
        elapsed: seconds since the session began.
        deadline_s: see below.

    Attributes:
        deadline_s: by that clock; nothing begins after it.
    """

    def __init__(
        self,
        rows: Sequence[RowState],
        target: GemmTarget,
        measuring: Measuring,
        programs: BuiltPrograms,
        seeds: SeedBank,
        effort: Effort,
        elapsed: Callable[[], float],
        deadline_s: float,
    ) -> None:
        self._rows = list(rows)
        self._groups: list[Group] = grouped(rows, lambda row: row.planned)
        self._leaders = {id(row): group[-1] for group in self._groups for row in group}
        self._target = target
        self._measuring = measuring
        self._programs = programs
        self._seeds = seeds
        self._effort = effort
        self._elapsed = elapsed
        self.deadline_s = deadline_s

    def cover(self, covered: Callable[[], None]) -> None:
        """Every row once: the untuned config, the seeds of packs, and all rivals, at length and checked.

        Args:
            covered: called for each row.
        """

        def work(row: RowState, configs: list[Any]) -> None:
            self._cover_row(row, configs)
            covered()

        total = step_us(self._rows)
        # What the step should spend its time on is all that is known so far.
        order = sorted(
            self._groups, key=lambda group: -sum(each.floor_us * each.weight / total[each.bucket] for each in group)
        )
        self._work(order, self._first_configs, work, in_order=False)

    def compare(self) -> None:
        """Those who compile at their first call and may serve nowhere."""
        wanted = [row for row in self._rows if row.planned.compiling]
        for row in sorted(wanted, key=lambda row: -(row.time_us or 0.0) * row.weight):
            choices = [(name, None) for name in row.planned.compiling]
            self._measuring.outcomes(row, choices, FULL, True, self.deadline_s)

    def search(self) -> None:
        """The rows that can still gain, the most promising first, each among its candidates."""
        self._work(self._open_groups(), self._search_configs, self._search_row)

    def ask(self, configs_of: Callable[[Group], list[Any]]) -> None:
        """What somebody else has for the rows that can still gain, the most promising first: the next is asked for when
        what came of the one before it has been timed.
        """
        for group in self._open_groups():
            if not all(self._is_done(row) for row in group):
                self._work([group], configs_of, self._search_row)

    def refine(self) -> None:
        """The neighbours of the best configs, for as long as that gains."""
        stalled: set[int] = set()
        for _ in range(self._effort.refinements):
            before = {id(row): row.time_us for row in self._rows}
            groups = [group for group in self._open_groups() if not all(id(row) in stalled for row in group)]
            self._work(groups, self._neighbour_configs, self._search_row)
            for row in self._rows:
                then = before[id(row)]
                if then is None or row.time_us is None or not has_gained(then, row.time_us):
                    stalled.add(id(row))
            if not groups or self._is_over():
                return

    def overlap(self) -> None:
        """The programmatic versions of each row's best config: steps choose among these as well."""
        self._work(self._groups, self._twin_configs, self._twin_row)

    def _twin_configs(self, group: Group) -> list[Any]:
        best = dict.fromkeys(row.best_config for row in group if row.best_config is not None)
        return [twin for config in best for twin in twins(config, group[0].contract, group[-1].bucket, self._target)]

    def _twin_row(self, row: RowState, configs: list[Any]) -> None:
        row.tried.update(configs)
        self._measuring.outcomes(row, [row.choice(each) for each in configs], FULL, True, self.deadline_s)

    def _is_over(self) -> bool:
        return self._elapsed() >= self.deadline_s

    def _work(
        self,
        groups: Sequence[Group],
        configs_of: Callable[[Group], list[Any]],
        work: Callable[[RowState, list[Any]], None],
        in_order: bool = True,
    ) -> None:
        """Groups in order, while the programs of the next ones are built.

        What is asked for depends on what was found so far, and on nothing that is a matter of time: so a tuner that
        goes on from its journal asks for the same.

        Args:
            in_order: what is asked for depends on the groups before it. Else all is begun at once, and whatever is
                built first is worked on first.
        """
        waiting, begun, ahead = deque(groups), list[tuple[Group, list[Any]]](), 0
        while (waiting or begun) and not self._is_over():
            while waiting and (len(begun) < 2 or ahead < LOOK_AHEAD or not in_order):
                group = waiting.popleft()
                configs = configs_of(group)
                self._programs.begin(_requests(group, configs))
                begun.append((group, configs))
                ahead += len(configs)
            try:
                left_s = self.deadline_s - self._elapsed()
                first = 0 if in_order else self._programs.first_finished([_requests(*each) for each in begun], left_s)
                self._programs.finish(_requests(*begun[first]), self.deadline_s - self._elapsed())
            except (TimeoutError, CancelledError):
                break
            group, configs = begun.pop(first)
            ahead -= len(configs)
            for row in reversed(group):
                if not self._is_over():
                    work(row, self._usable(row, configs))
            lists = [(row, each) for row in group for each in shortlist(row) if each.provider in TILE_PROGRAMS]
            keep = {row.request(each.config) for row, each in lists}
            if not group[0].shares_programs:
                self._programs.let_go([group[0].request(config) for row in group for config in row.tried], keep)
        if waiting or begun:
            self._programs.cancel()

    def _usable(self, row: RowState, configs: Sequence[Any]) -> list[Any]:
        """Those that were built. The untuned config may be slow: it is what there was before. And seeds have won as
        they are: programs that search rather than stream can be quick although they spill.
        """
        known = {launched_plainly(each) for each in (row.untuned, *row.seeds)}
        return [
            config
            for config in configs
            if self._programs.problem(row.request(config), spilling=launched_plainly(config) in known) is None
        ]

    def _first_configs(self, group: Group) -> list[Any]:
        for row in group:
            row.seeds.update(self._seeds.seeds(row.contract, row.bucket))
        seeds = [config for row in group for config in self._seeds.seeds(row.contract, row.bucket)]
        return list(dict.fromkeys([*(row.untuned for row in group), *seeds]))

    def _cover_row(self, row: RowState, configs: list[Any]) -> None:
        row.tried.update(configs)
        rivals = [(name, None) for name in row.planned.rivals]
        self._measuring.outcomes(row, [*map(row.choice, configs), *rivals], FULL, True, self.deadline_s)

    def _search_configs(self, group: Group) -> list[Any]:
        contract, bucket = group[0].contract, program_bucket(group[0].contract, group[-1].bucket)
        if all(self._is_done(row) for row in group):
            return []
        given = self._seeds.seeds(contract, bucket)
        near = nearest(self._winners(group), contract, bucket, self._target)
        if given and self._seeds.narrows(contract.name):
            around = [each for seed in given for each in neighbours(seed, contract, bucket, self._target)]
            known = {algorithm(seed) for seed in given}
            other = [each for each in ranked(contract, bucket, self._target) if algorithm(each) not in known]
            always = [*given, *near, *other[:FIRST_OF_OTHERS]]
            configs = kept(around, -(-self._effort.candidates(contract, self._target) // 3), always)
        else:
            always = [group[0].untuned, *given, *near]
            configs = kept(
                ranked(contract, bucket, self._target), self._effort.candidates(contract, self._target), always
            )
        return [config for config in configs if not all(config in row.tried for row in group)]

    def _neighbour_configs(self, group: Group) -> list[Any]:
        best = dict.fromkeys(row.best_config for row in group if not self._is_done(row))
        found = [
            each
            for config in best
            if config is not None
            for each in neighbours(config, group[0].contract, group[-1].bucket, self._target)
        ]
        return [config for config in dict.fromkeys(found) if not all(config in row.tried for row in group)]

    def _search_row(self, row: RowState, configs: list[Any]) -> None:
        leader = self._leaders[id(row)]
        if row is not leader:
            configs = leader.quickest(configs, FOLLOWED)
        configs = [config for config in configs if config not in row.tried]
        if self._is_done(row) or not configs:
            return
        row.tried.update(configs)

        def time(configs: Sequence[Any], timing: Timing, check: bool) -> dict[Any, Outcome]:
            choices = [row.choice(config) for config in configs]
            outcomes = self._measuring.outcomes(row, choices, timing, check, self.deadline_s)
            return {config: outcome for (_, config), outcome in outcomes.items()}

        search(time, configs, row.time_us)

    def _is_done(self, row: RowState) -> bool:
        if row.time_us is None:
            return False
        return is_done(row.time_us, row.floor_us, row.weight, step_us(self._rows)[row.bucket])

    def _open_groups(self) -> list[Group]:
        """Those with a row that can still gain, the one that may gain most of a step's time first."""
        total = step_us(self._rows)

        def gain(group: Group) -> float:
            return sum(
                share_to_gain(row.time_us or 2 * row.floor_us, row.floor_us, row.weight, total[row.bucket])
                for row in group
            )

        found = [group for group in self._groups if not all(self._is_done(row) for row in group)]
        return sorted(found, key=gain, reverse=True)

    def _winners(self, group: Group) -> list[Winner]:
        """Of all other rows, those of the nearest buckets first among equals."""
        others = [row for row in self._rows if row not in group and row.best_config is not None]
        others.sort(key=lambda row: BUCKETS.index(row.bucket))
        return [Winner(row.contract, row.bucket, row.best_config) for row in others]


def _requests(group: Group, configs: Sequence[Any]) -> list[Request]:
    return [group[0].request(config) for config in configs]


def shortlist(row: RowState) -> list[Outcome]:
    """Who may be chosen in a step: the fastest few, and the fastest that is programmatic."""
    ranking = row.ranking()
    found = ranking[:SHORTLIST]
    programmatic = next((each for each in ranking if is_programmatic(each.config)), None)
    return found if programmatic is None or programmatic in found else [*found, programmatic]
