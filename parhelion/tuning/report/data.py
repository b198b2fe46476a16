"""All that the report says, as plain records: the page and the JSON are two renderings of a ``Report``."""

from __future__ import annotations

import msgspec

from parhelion.packs.format import Ledger


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where figures come from: a pack or a benchmark's result.

    Attributes:
        kind: ``pack`` or ``benchmark``.
        name: the pack's name or the result's file name.
        device: what it calls itself.
        target: what compilers call its architecture; empty if the source does not say.
        versions: package to version.
        command: what made it.
        created_at: ISO 8601, UTC.
        notes: sentences that a reader of its figures must know.
    """

    kind: str
    name: str
    device: str
    target: str
    versions: dict[str, str]
    command: str
    created_at: str
    notes: tuple[str, ...] = ()


class Point(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured time: the median of one launch and its spread, in microseconds."""

    num_tokens: int
    provider: str
    time_us: float
    time_us_p10: float
    time_us_p90: float


class Size(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A size of M that was measured.

    Attributes:
        num_tokens: M.
        floor_us: what the device allows at best; 0 if the source does not say.
        serves: the provider that is launched at this M: the pack's choice, or the fastest one of a benchmark that
            compiles nothing while serving.
    """

    num_tokens: int
    floor_us: float
    serves: str


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times over M of one contract on one device, all from one source, so that they may be compared.

    Attributes:
        source: its name.
        device: of the source.
        op: the op.
        contract: the op with its static dimensions, as ``Contract.key`` spells them.
        sizes: in order of M.
        points: in order of provider and M, one for each pair.
    """

    source: str
    device: str
    op: str
    contract: str
    sizes: tuple[Size, ...]
    points: tuple[Point, ...]


class Gap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was asked for and not measured, and why; ``num_tokens`` is empty if that holds for every size."""

    source: str
    contract: str
    provider: str
    num_tokens: tuple[int, ...]
    reason: str


class Payback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When tuning has paid for itself, if all steps are of one M; see ``payback.paybacks`` for the formula.

    Attributes:
        num_tokens: M.
        rows: those of this M with both times.
        without_rival: rows of this M that nobody but Helion was measured at: not counted.
        round_us: launching each row's best once.
        saved_us: by launching those instead of each row's best rival.
        gpu_hours: of serving until the tuning is earned back; None if nothing is saved or the cost is unknown.
    """

    num_tokens: int
    rows: int
    without_rival: int
    round_us: float
    saved_us: float
    gpu_hours: float | None


class PackCost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one pack cost and what it takes.

    Attributes:
        pack: its name.
        rows: how many there are.
        ledger: as the pack tells it.
        tune_s: seconds of tuning: the ledger's, or the sum over the rows if it has none.
        num_binaries, binary_bytes: what is kept.
        workspace_bytes: the largest of any launch.
        paybacks: by M.
    """

    pack: str
    rows: int
    ledger: Ledger
    tune_s: float
    num_binaries: int
    binary_bytes: int
    workspace_bytes: int
    paybacks: tuple[Payback, ...]


class MatrixCell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One op on one target: how many of ``total`` are built, what serves instead of the others, and why."""

    op: str
    target: str
    built: int
    total: int
    instead: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What builds where.

    Attributes:
        source: the file's name.
        counts: what cells count: ``programs`` or ``contracts``.
        targets: the columns.
        cells: in order of op and target.
    """

    source: str
    counts: str
    targets: tuple[str, ...]
    cells: tuple[MatrixCell, ...]


class Fraction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Floor over time on one device; None if it has measurements of the op, but none of these launches."""

    device: str
    of_floor: float | None


class Score(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the devices' limits is reached; see ``portability.scores``.

    Attributes:
        op: the op; empty for all of them.
        provider: ``helion``, or ``serving`` for whichever provider serves.
        sizes: ``decode``, ``prefill`` or ``all``.
        problems: pairs of contract and M that count, ``measured`` being all that some device has.
        fractions: by device.
        score: Pennycook's PP; None where fewer than two devices can be compared.
    """

    op: str
    provider: str
    sizes: str
    problems: int
    measured: int
    fractions: tuple[Fraction, ...]
    score: float | None


class Report(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole report.

    Attributes:
        skipped: sentences about files that hold nothing for it.
    """

    sources: tuple[Source, ...]
    figures: tuple[Figure, ...]
    gaps: tuple[Gap, ...]
    costs: tuple[PackCost, ...]
    matrix: Matrix | None
    scores: tuple[Score, ...]
    skipped: tuple[str, ...] = ()


def to_json(report: Report) -> bytes:
    """Indented JSON, from which ``msgspec.json.decode(..., type=Report)`` makes an equal report."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n"
