"""From tuned rows to a pack: who serves, who came behind, what it cost, and the binaries that are needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from parhelion.errors import ConfigError
from parhelion.ops.source_hash import source_hashes
from parhelion.packs.blocks import Bucket, with_rows
from parhelion.packs.files import RECORD
from parhelion.packs.format import (
    FORMAT_VERSION,
    TILE_PROGRAMS,
    BlockTime,
    Candidate,
    Fingerprint,
    Ledger,
    ModelEntry,
    Pack,
    Row,
)
from parhelion.packs.lookup import served_as_in, usable_rows
from parhelion.packs.merge import united
from parhelion.packs.store import read_pack, write_pack
from parhelion.tuning.build_pack import BUILD, built_with, source_hashes_of
from parhelion.tuning.jobs import Outcome
from parhelion.tuning.programs import Program, distinct, plain
from parhelion.tuning.row_state import RowState

TILE_PROGRAMS_BEHIND = 2
"""Other configs that a row lists among its runners-up."""


@dataclass(frozen=True)
class PackFacts:
    """What a pack says of itself.

    Attributes:
        fingerprint, command, created_at: as in a pack.
        models: for which it was tuned.
    """

    fingerprint: Fingerprint
    command: str
    created_at: str
    models: tuple[ModelEntry, ...]


@dataclass(frozen=True)
class TunedPack:
    """A pack as ``write_pack`` takes it."""

    pack: Pack
    binaries: Mapping[str, bytes]


def tuned_pack(
    name: str,
    facts: PackFacts,
    rows: Sequence[RowState],
    programs: Mapping[RowState, Sequence[Program]],
    ledger: Ledger,
    blocks: Sequence[BlockTime] = (),
    beside: Sequence[RowState] = (),
) -> TunedPack:
    """The pack of all rows that someone is known to serve.

    Args:
        programs: of the rows that tile programs serve.
        blocks: measured with those who serve the rows; without a row for each of its contracts one is left out.
        beside: rows that the blocks were measured with, and that stand in an older pack (``with_rows_of``).
    """
    needed = [program for row in rows for program in programs.get(row, ())]
    binaries, files = distinct(needed)
    made = [_row(row, programs.get(row, ())) for row in rows if row.serving is not None]
    build_s = round(sum(binary.compile_s for binary in binaries), 1)
    pack = Pack(
        format_version=FORMAT_VERSION,
        name=name,
        fingerprint=facts.fingerprint,
        rows=tuple(sorted(made, key=lambda row: (row.contract, row.num_tokens))),
        binaries=binaries,
        source_hashes=source_hashes_of(made),
        versions=versions(),
        command=facts.command,
        created_at=facts.created_at,
        models=facts.models,
        ledger=msgspec.structs.replace(ledger, build_s=build_s),
        blocks=with_rows(blocks, _buckets(made) | {(row.contract.key(), row.bucket) for row in beside}),
    )
    return TunedPack(pack, files)


def held_back(new: Pack, before: Pack | None) -> set[Bucket]:
    """Rows of a new pack that do not replace those of an older one of the same device: blocks were measured with the
    older ones and none with these, so that nobody knows what they would do to a step.
    """
    if before is None:
        return set()
    usable = served_as_in(before, _usable(before))
    known, again = (
        {(key, block.num_tokens) for block in blocks for key in block.contracts}
        for blocks in (with_rows(before.blocks, usable), new.blocks)
    )
    return (_buckets(new.rows) & known) - again


def with_rows_of(new: TunedPack, before: TunedPack) -> TunedPack:
    """The new pack with those rows of an older one, of the same device, that it lacks or that it does not replace
    (``held_back``) and that are not stale; and with the older one's times of whole blocks all of whose rows these are.
    """
    usable = _usable(before.pack)
    held = held_back(new.pack, before.pack)
    made = [row for row in new.pack.rows if (row.contract, row.num_tokens) not in held]
    had = _buckets(made)
    kept = [row for row in usable if (row.contract, row.num_tokens) not in had]
    files, own_files = _files(kept), _files(made)
    binaries = {each.file: each for each in before.pack.binaries if each.file in files}
    binaries |= {each.file: each for each in new.pack.binaries if each.file in own_files}
    rows = tuple(sorted((*made, *kept), key=lambda row: (row.contract, row.num_tokens)))
    # What a model called once it may call no more: of that there are no rows left.
    still = {row.contract for row in rows}
    called = [
        msgspec.structs.replace(each, contracts=tuple(key for key in each.contracts if key in still))
        for each in before.pack.models
    ]
    again = {(each.contracts, each.num_tokens) for each in new.pack.blocks}
    old = [each for each in before.pack.blocks if (each.contracts, each.num_tokens) not in again]
    pack = msgspec.structs.replace(
        new.pack,
        rows=rows,
        binaries=tuple(binaries[file] for file in sorted(binaries)),
        source_hashes=new.pack.source_hashes | source_hashes_of(kept),
        models=united([*called, *new.pack.models]),
        blocks=with_rows((*new.pack.blocks, *with_rows(old, served_as_in(before.pack, kept))), had | _buckets(kept)),
    )
    # Files are named by what is in them, so those of one name are the same.
    own = {file: new.binaries[file] for file in own_files}
    return TunedPack(pack, {**{file: before.binaries[file] for file in files}, **own})


def read_before(path: Path, fingerprint: Fingerprint) -> TunedPack | None:
    """The pack that is at a path already, all of it in memory, since it will be replaced; None if there is none.

    Raises:
        ConfigError: it is another device's, or something else.
        PackError: it is damaged.
    """
    if not path.exists():
        return None
    if path.is_dir() and not (path / RECORD).is_file():
        raise ConfigError(f"{path} exists and is no pack: name another --output")
    stored = read_pack(path)
    there = stored.pack.fingerprint
    if (there.device, there.target, there.num_processors) != (
        fingerprint.device,
        fingerprint.target,
        fingerprint.num_processors,
    ):
        raise ConfigError(
            f"{path} is a pack of {there.device or there.target} ({there.num_processors} processors), and this is "
            f"{fingerprint.device} ({fingerprint.num_processors}): name another --output"
        )
    return TunedPack(stored.pack, {binary.file: stored.binary(binary) for binary in stored.pack.binaries})


def write(tuned: TunedPack, before: TunedPack | None, path: Path) -> Pack:
    """Write the pack, with what was there before."""
    whole = tuned if before is None else with_rows_of(tuned, before)
    write_pack(whole.pack, whole.binaries, path)
    return whole.pack


def versions() -> dict[str, str]:
    """Of what tuned, and of what built: here they are the same."""
    built = built_with()
    return {package.removeprefix(BUILD): found for package, found in built.items()} | built


def _usable(pack: Pack) -> list[Row]:
    """Rows that are not stale, without candidates that are."""
    rows, _ = usable_rows(pack, source_hashes())
    return list(rows)


def _files(rows: Iterable[Row]) -> set[str]:
    """The files of binaries that rows name."""
    return {file for row in rows for each in (row.best, *row.runners_up) for file in each.binaries}


def _buckets(rows: Iterable[Row]) -> set[Bucket]:
    return {(row.contract, row.num_tokens) for row in rows}


def _row(row: RowState, programs: Sequence[Program]) -> Row:
    serving = row.serving
    assert serving is not None
    by_step = row.chosen is not None
    return Row(
        op=row.contract.name,
        contract=row.contract.key(),
        num_tokens=row.bucket,
        best=_candidate(serving, tuple(sorted({program.binary.file for program in programs}))),
        runners_up=tuple(_candidate(each) for each in row.others(TILE_PROGRAMS_BEHIND)),
        floor_us=row.floor_us,
        measured_at=row.bucket,
        rel_err=serving.rel_err,
        tune_s=round(row.gpu_s, 3),
        evaluations=row.evaluations,
        chosen_by="step" if by_step else "seed" if _is_seed(row, serving) else "row",
        workspace_bytes=serving.workspace_bytes,
        untuned_us=row.untuned_us(),
    )


def _is_seed(row: RowState, serving: Outcome) -> bool:
    return serving.provider in TILE_PROGRAMS and serving.config != row.untuned and serving.config in row.seeds


def _candidate(outcome: Outcome, binaries: tuple[str, ...] = ()) -> Candidate:
    time_us = outcome.time_us
    assert time_us is not None
    config = None if outcome.config is None else plain(outcome.config)
    return Candidate(outcome.provider, config, time_us.median, time_us.p10, time_us.p90, binaries)
