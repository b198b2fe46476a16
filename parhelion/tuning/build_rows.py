"""A pack's rows with binaries that were built anew: what is kept of each, and what serves where something cannot be."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from parhelion.errors import PackError
from parhelion.ops.contract import Contract
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.launching import launch_module
from parhelion.ops.registry import op
from parhelion.ops.tile_programs import programs_module
from parhelion.packs.format import NEVER_SERVE, TILE_PROGRAMS, Candidate, Row
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.jobs import Compiler
from parhelion.tuning.programs import Program, plain
from parhelion.tuning.target import Target

SEED = "seed"
UNTUNED = "untuned"

Request = tuple[Contract, int, Any]
"""A contract, a bucket and the op's config."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Failure:
    """Programs that could not be built.

    Attributes:
        op, contract, num_tokens: of the row; see ``Row``.
        reason: why not.
        instead: what serves there.
    """

    op: str
    contract: str
    num_tokens: int
    reason: str
    instead: str


class Builder:
    """What was built so far.

    Attributes:
        built: the programs of each request, or why there are none.
        seconds: of all processors.
    """

    def __init__(self, compiler: Compiler, progress: Progress) -> None:
        self.built: dict[Request, tuple[Program, ...] | str] = {}
        self.seconds = 0.0
        self._compiler = compiler
        self._progress = progress

    def build(self, requests: Iterable[Request]) -> None:
        """Build what is not there yet."""
        wanted = [request for request in dict.fromkeys(requests) if request not in self.built]
        for done, (index, built, seconds) in enumerate(self._compiler.compile(wanted), start=1):
            self.built[wanted[index]] = built
            self.seconds += seconds
            self._progress(done, len(wanted))

    def files(self, request: Request) -> tuple[str, ...]:
        """Of a request's binaries; none if they could not be built."""
        built = self.built[request]
        return () if isinstance(built, str) else tuple(sorted({program.binary.file for program in built}))


class RowDraft:
    """A row that is to be built.

    Args:
        row: as it was.
        target: what for.
        keeps: its measurements hold there.

    Raises:
        PackError: its contract or one of its configs is not known here.
    """

    def __init__(self, row: Row, target: Target, keeps: bool) -> None:
        self._row = row
        self._contract = contract_of_key(row.contract)
        self._keeps = keeps
        config = untuned_config(self._contract, row.num_tokens, target)
        self.spare: Request = (self._contract, row.num_tokens, config)
        self._requests = {
            position: (self._contract, row.num_tokens, _config(row, each))
            for position, each in enumerate((row.best, *row.runners_up))
            if each.provider in TILE_PROGRAMS and (each is row.best or each.binaries)
        }

    def requests(self) -> list[Request]:
        """Of its tile programs: what serves, and the others whose binaries it had."""
        return list(self._requests.values())

    def row(self, builder: Builder) -> Row | None:
        """The row with what was built of it, or if nothing of it can serve, with the untuned config, if that was."""
        found = [rebuilt for rebuilt in self._rebuilt(builder) if rebuilt is not None]
        best = next((each for each in found if self._may_serve(each)), None)
        if best is None:
            files = builder.files(self.spare) if self.spare in builder.built else ()
            return self._unmeasured(unmeasured(self._contract, self.spare[2], files), (), UNTUNED) if files else None
        others = tuple(each for each in found if each is not best)
        if self._keeps:
            return msgspec.structs.replace(self._row, best=best, runners_up=others)
        # Found on another device, a config is a better guess than none.
        chosen_by = UNTUNED if self._row.chosen_by == UNTUNED else SEED
        return self._unmeasured(best, tuple(each for each in others if each.binaries), chosen_by)

    def failures(self, builder: Builder, row: Row | None) -> list[Failure]:
        """What was not built, beside the row that came of it."""
        instead = self._contract.instead if row is None else row.best.provider
        instead = f"{instead} with another config" if instead in TILE_PROGRAMS else instead
        asked = (builder.built.get(request) for request in (*self.requests(), self.spare))
        reasons = dict.fromkeys(built for built in asked if isinstance(built, str))
        return [Failure(self._row.op, self._row.contract, self._row.num_tokens, each, instead) for each in reasons]

    def _rebuilt(self, builder: Builder) -> Iterator[Candidate | None]:
        for position, candidate in enumerate((self._row.best, *self._row.runners_up)):
            request = self._requests.get(position)
            files = () if request is None else builder.files(request)
            if request is not None and not files:
                yield None
            elif self._keeps:
                yield msgspec.structs.replace(candidate, binaries=files)
            else:
                yield Candidate(candidate.provider, candidate.config, 0.0, 0.0, 0.0, files)

    def _may_serve(self, candidate: Candidate) -> bool:
        # Unmeasured, another provider is no better than what serves without a pack.
        return bool(candidate.binaries) or (self._keeps and candidate.provider not in (*TILE_PROGRAMS, *NEVER_SERVE))

    def _unmeasured(self, best: Candidate, others: tuple[Candidate, ...], chosen_by: str) -> Row:
        return Row(self._row.op, self._row.contract, self._row.num_tokens, best, others, chosen_by=chosen_by)


def untuned_config(contract: Contract, bucket: int, target: Target) -> Any:
    """The op's config for M up to ``bucket`` where nothing was measured."""
    return launch_module(contract.name).default_config(contract, bucket, gemm_target(target.name))


def unmeasured(contract: Contract, config: Any, files: tuple[str, ...] = ()) -> Candidate:
    """An op's tile programs with a config of which no time is known."""
    return Candidate(op(contract.name).tile_programs, plain(config), 0.0, 0.0, 0.0, files)


def _config(row: Row, candidate: Candidate) -> Any:
    try:
        return msgspec.convert(candidate.config, programs_module(row.op, candidate.provider).Config)
    except msgspec.ValidationError as error:
        raise PackError(
            f"{row.contract}: the config {candidate.config} is none of {row.op}'s ({error}); tune its rows again"
        ) from None
