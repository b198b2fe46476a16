"""What a pack has to say in the report."""

from __future__ import annotations

from collections.abc import Iterator

from parhelion.packs.format import Candidate, Pack, Row
from parhelion.tuning.report.data import Gap, PackCost, Point, Source
from parhelion.tuning.report.figures import Sample, is_measured
from parhelion.tuning.report.payback import paybacks


def pack_source(pack: Pack) -> Source:
    """The pack as a source."""
    mark = pack.fingerprint
    models = [model.title for model in pack.models]
    notes = [f"tuned for {', '.join(models)}"] if models else []
    if mark.bandwidth:
        notes.append(f"copies at {mark.bandwidth / 1e12:.3f} TB/s")
    return Source(
        "pack", pack.name, mark.device, mark.target, pack.versions, pack.command, pack.created_at, tuple(notes)
    )


def pack_samples(pack: Pack) -> Iterator[Sample]:
    """Every measured time of its rows."""
    for row in pack.rows:
        for candidate in (row.best, *row.runners_up):
            if is_measured(row.measured_at, candidate.time_us):
                yield Sample(row.contract, row.floor_us, _point(row, candidate), row.best.provider)


def pack_gaps(pack: Pack) -> tuple[Gap, ...]:
    """The rows whose winner was not measured, by contract and provider."""
    sizes: dict[tuple[str, str, str], list[int]] = {}
    for row in pack.rows:
        if not is_measured(row.measured_at, row.best.time_us):
            sizes.setdefault((row.contract, row.best.provider, row.chosen_by), []).append(row.num_tokens)
    return tuple(
        Gap(pack.name, contract, provider, tuple(found), f"serves without having been measured; chosen by: {chosen_by}")
        for (contract, provider, chosen_by), found in sizes.items()
    )


def pack_cost(pack: Pack) -> PackCost:
    """What it cost, what it takes, and when it pays."""
    tune_s = pack.ledger.tune_s or sum(row.tune_s for row in pack.rows)
    files = {binary.file: binary.num_bytes for binary in pack.binaries}
    return PackCost(
        pack=pack.name,
        rows=len(pack.rows),
        ledger=pack.ledger,
        tune_s=tune_s,
        num_binaries=len(pack.binaries),
        binary_bytes=sum(files.values()),
        workspace_bytes=max((row.workspace_bytes for row in pack.rows), default=0),
        paybacks=paybacks(pack.rows, tune_s),
    )


def _point(row: Row, candidate: Candidate) -> Point:
    return Point(row.measured_at, candidate.provider, candidate.time_us, candidate.time_us_p10, candidate.time_us_p90)
