"""Packs and their rows as figures for a person or a report."""

from __future__ import annotations

from dataclasses import dataclass

from parhelion.packs.files import disk_bytes
from parhelion.packs.format import BlockTime, Fingerprint, Ledger, Pack, Row
from parhelion.packs.store import StoredPack


@dataclass(frozen=True)
class RowSummary:
    """A row beside its floor and its best runner-up.

    Attributes:
        op, contract, num_tokens: which.
        provider: who serves; ``config`` as the pack has it.
        time_us, time_us_p10, time_us_p90: its median and spread; 0 if it was not measured.
        floor_us: the least that the device's ceilings allow; 0 if it is not known.
        of_floor: floor over time, the fraction of the limit that is reached; None without a floor.
        runner_up, runner_up_us: the fastest of the others that were measured; None if there was none.
        runner_up_ratio: its time over that of who serves: above 1 where the choice is the faster one.
    """

    op: str
    contract: str
    num_tokens: int
    provider: str
    config: dict[str, object] | None
    time_us: float
    time_us_p10: float
    time_us_p90: float
    floor_us: float
    of_floor: float | None
    runner_up: str | None
    runner_up_us: float | None
    runner_up_ratio: float | None


@dataclass(frozen=True)
class BlockSummary:
    """A way to compute a whole block, beside what its launches take by themselves.

    Attributes:
        contracts, num_tokens, time_us: as in the pack.
        ops: of its calls, in order.
        sum_us: of its rows' times; None if one of them is not known.
        of_sum: the block's time over that: below 1 as far as launches overlap.
    """

    contracts: tuple[str, ...]
    num_tokens: int
    time_us: float
    ops: tuple[str, ...]
    sum_us: float | None
    of_sum: float | None


@dataclass(frozen=True)
class PackSummary:
    """A pack without its binaries.

    Attributes:
        name, path, created_at, command, fingerprint, versions, ledger: as in the pack; where it lies.
        models: ``name quantization`` of those it was tuned for.
        ops: names, sorted.
        num_rows, num_blocks, num_binaries: counts of rows, of times of whole blocks, of binaries.
        binary_bytes: of its code objects, each counted once.
        disk_bytes: of all of it as it lies there.
        workspace_bytes: the most that one launch takes beside its inputs and outputs.
    """

    name: str
    path: str
    created_at: str
    command: str
    fingerprint: Fingerprint
    versions: dict[str, str]
    ledger: Ledger
    models: tuple[str, ...]
    ops: tuple[str, ...]
    num_rows: int
    num_blocks: int
    num_binaries: int
    binary_bytes: int
    disk_bytes: int
    workspace_bytes: int


def summarize(stored: StoredPack) -> PackSummary:
    """A pack in figures."""
    pack = stored.pack
    return PackSummary(
        name=pack.name,
        path=str(stored.path),
        created_at=pack.created_at,
        command=pack.command,
        fingerprint=pack.fingerprint,
        versions=pack.versions,
        ledger=pack.ledger,
        models=tuple(model.title for model in pack.models),
        ops=tuple(sorted({row.op for row in pack.rows})),
        num_rows=len(pack.rows),
        num_blocks=len(pack.blocks),
        num_binaries=len(pack.binaries),
        binary_bytes=_binary_bytes(pack),
        disk_bytes=disk_bytes(stored.path),
        workspace_bytes=max((row.workspace_bytes for row in pack.rows), default=0),
    )


def summarize_row(row: Row) -> RowSummary:
    """A row in figures."""
    best = row.best
    measured = [candidate for candidate in row.runners_up if candidate.time_us > 0]
    rival = min(measured, key=lambda candidate: candidate.time_us, default=None)
    return RowSummary(
        op=row.op,
        contract=row.contract,
        num_tokens=row.num_tokens,
        provider=best.provider,
        config=best.config,
        time_us=best.time_us,
        time_us_p10=best.time_us_p10,
        time_us_p90=best.time_us_p90,
        floor_us=row.floor_us,
        of_floor=_ratio(row.floor_us or None, best.time_us),
        runner_up=rival.provider if rival else None,
        runner_up_us=rival.time_us if rival else None,
        runner_up_ratio=_ratio(rival.time_us if rival else None, best.time_us),
    )


def summarize_block(block: BlockTime, pack: Pack) -> BlockSummary:
    """A whole block in figures."""
    times = {row.contract: row.best.time_us for row in pack.rows if row.num_tokens == block.num_tokens}
    found = [times.get(key, 0.0) for key in block.contracts]
    sum_us = sum(found) if all(found) else None
    return BlockSummary(
        contracts=block.contracts,
        num_tokens=block.num_tokens,
        time_us=block.time_us,
        ops=tuple(key.partition("(")[0] for key in block.contracts),
        sum_us=sum_us,
        of_sum=None if sum_us is None else block.time_us / sum_us,
    )


def _binary_bytes(pack: Pack) -> int:
    return sum({binary.file: binary.num_bytes for binary in pack.binaries}.values())


def _ratio(a: float | None, b: float) -> float | None:
    return a / b if a is not None and b > 0 else None
