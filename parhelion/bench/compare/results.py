"""What a comparison leaves behind, written anew after every finished point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from parhelion.bench.compare.engines import OURS
from parhelion.bench.compare.protocol import EngineFacts
from parhelion.bench.compare.settings import OfflineSettings, OnlineSettings
from parhelion.bench.report import to_json
from parhelion.platform.measure import summarize

AnyRow = TypeVar("AnyRow")


@dataclass(frozen=True)
class Spread:
    """A median with its range, over the rounds."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The median and the range of a sample that is not empty."""
    summary = summarize(values)
    return Spread(summary.median, summary.minimum, summary.maximum)


@dataclass(frozen=True)
class Sample:
    """One engine's turn in one round.

    Attributes:
        prefill_s: of the batch with one output token each.
        whole_s: of the batch with all output tokens.
        prefill_tokens, whole_tokens: that came out.
        prompt_checksum: of the prompts of both.
    """

    prefill_s: float
    whole_s: float
    prefill_tokens: int
    whole_tokens: int
    prompt_checksum: int


@dataclass(frozen=True)
class Row:
    """A model and a batch size; engines by name.

    Attributes:
        floor_ms: the bytes that a decode step must read over the device's measured copy bandwidth; None if not known.
        tpot_ms, prefill_ms: medians of the rounds; TPOT is (T(output_length) - T(1)) / (output_length - 1).
        tpot_ms_range, prefill_ms_range: the smallest and the largest.
        output_tokens_per_s, total_tokens_per_s: medians; total counts the prompts too.
        of_floor: the floor over the median TPOT; 1 is as fast as the device can be.
        tpot_ratio, prefill_ratio: by peer, its time over Parhelion's, formed within each round: above 1
            Parhelion is the faster.
        refused: by peer, why no ratio is given.
        samples: every round, by engine.
        prefill_floor_ms: the products of the prompts at the device's measured rates, or the weights' bytes, whichever
            takes longer; None if not known.
        measured_at: the start of the run that measured it, in UTC, where that is not the comparison's.
    """

    model: str
    batch: int
    floor_ms: float | None
    tpot_ms: dict[str, float]
    prefill_ms: dict[str, float]
    tpot_ms_range: dict[str, tuple[float, float]]
    prefill_ms_range: dict[str, tuple[float, float]]
    output_tokens_per_s: dict[str, float]
    total_tokens_per_s: dict[str, float]
    of_floor: dict[str, float]
    tpot_ratio: dict[str, Spread]
    prefill_ratio: dict[str, Spread]
    refused: dict[str, str]
    samples: dict[str, list[Sample]]
    prefill_floor_ms: float | None = None
    measured_at: str | None = None


@dataclass(frozen=True)
class EngineRow:
    """One engine with one model.

    Attributes:
        import_s: from the process's start until the engine was imported.
        load_s: from then until it was ready.
        ready_s: both; the cold start.
        first_token_s: from the process's start until it had answered one prompt with one token.
        peak_gib: of device memory, KV cache included; None if not measured.
        kv_cache_gib: of its KV cache, as told.
        facts: what it says of itself.
        error: why it was given up; None if it was not.
    """

    model: str
    engine: str
    import_s: float | None = None
    load_s: float | None = None
    ready_s: float | None = None
    first_token_s: float | None = None
    peak_gib: float | None = None
    kv_cache_gib: float | None = None
    facts: EngineFacts = field(default_factory=EngineFacts)
    error: str | None = None


@dataclass(frozen=True)
class LoadFigures:
    """One server under one load: each a median of the rounds with its range. Times in milliseconds, rates a second.

    Attributes:
        goodput_per_s, good_share: requests that kept both limits: how many a second, and of all that were sent.
        failed: requests, over all rounds.
        client_busy: share of the time in which the busiest client computed, in the round where that was most; near 1
            the clients are what is measured.
        stricter: goodput by stricter limits of TPOT, the limits in milliseconds as text.
    """

    ttft_ms_p50: Spread
    ttft_ms_p90: Spread
    ttft_ms_p99: Spread
    tpot_ms_p50: Spread
    tpot_ms_p90: Spread
    tpot_ms_p99: Spread
    itl_ms_p50: Spread
    itl_ms_p90: Spread
    itl_ms_p99: Spread
    requests_per_s: Spread
    output_tokens_per_s: Spread
    goodput_per_s: Spread
    good_share: Spread
    failed: int
    client_busy: float = 0.0
    stricter: dict[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True)
class OnlineRow:
    """A model under one load.

    Attributes:
        load: ``closed`` (so many in flight) or ``open`` (Poisson arrivals, as many in flight as there are).
        concurrency: of the closed loop.
        rate: arrivals a second of the open loop.
        engines: figures by name.
        errors: by name, why there are none.
        measured_at: as of ``Row``.
    """

    model: str
    load: str
    concurrency: int | None
    rate: float | None
    engines: dict[str, LoadFigures]
    errors: dict[str, str]
    measured_at: str | None = None


@dataclass
class Comparison:
    """The whole result; grows while it is measured.

    Attributes:
        device: the name, and the copy bandwidth in bytes a second that the floors are made of.
        versions: of packages, by engine.
        measured_at: the start, in UTC.
        memory_source: where peak memory comes from.
        rows, online: the points.
        cold_start_s, peak_gib: by engine: of the model that took most of it; ``engines`` has each model.
        engines: each engine with each model.
        notes: sentences that a reader of the figures must know.
    """

    device: str
    bandwidth: float
    versions: dict[str, dict[str, str]]
    command: str
    measured_at: str
    settings: OfflineSettings
    online_settings: OnlineSettings
    alive: str
    memory_source: str
    rows: list[Row] = field(default_factory=list)
    cold_start_s: dict[str, float] = field(default_factory=dict)
    peak_gib: dict[str, float] = field(default_factory=dict)
    online: list[OnlineRow] = field(default_factory=list)
    engines: list[EngineRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Recorder:
    """Holds the comparison and writes it after each change, so that a run that is cut off loses nothing."""

    def __init__(self, comparison: Comparison, path: Path | None) -> None:
        self.comparison = comparison
        self._path = path
        self._loads: set[object] = set()

    def put_row(self, row: Row) -> None:
        """Add a row, or replace the one of its model and batch."""
        self._put(self.comparison.rows, row, lambda each: (each.model, each.batch))
        self.write()

    def put_engine(self, row: EngineRow) -> None:
        """Add what is known of an engine with a model, or replace it."""
        rows = self.comparison.engines
        self._put(rows, row, lambda each: (each.model, each.engine))
        if row.facts.versions:
            self.comparison.versions[row.engine] = row.facts.versions
        self.comparison.cold_start_s = _largest({(r.engine, r.model): r.ready_s for r in rows})
        self.comparison.peak_gib = _largest({(r.engine, r.model): r.peak_gib for r in rows})
        self.write()

    def put_online(self, row: OnlineRow) -> None:
        """Add a row; servers that this run measured under the same load before, one after the other, join it."""
        key = _load_of(row)
        for other in self.comparison.online:
            if _load_of(other) == key and key in self._loads:
                engines, errors = {**other.engines, **row.engines}, {**other.errors, **row.errors}
                row = replace(row, engines=engines, errors=errors)
        self._put(self.comparison.online, row, _load_of)
        self._loads.add(key)
        self.write()

    def _put(self, rows: list[AnyRow], row: AnyRow, key: Callable[[AnyRow], object]) -> None:
        """In the place of the one with the same key, or at the end."""
        for number, other in enumerate(rows):
            if key(other) == key(row):
                rows[number] = row
                return
        rows.append(row)

    def write(self) -> None:
        """Write the file, all of it or nothing."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_name(self._path.name + ".part")
        unfinished.write_bytes(to_json(self.comparison))
        unfinished.replace(self._path)


def make_row(
    model: str,
    batch: int,
    settings: OfflineSettings,
    floor_s: float | None,
    samples: Mapping[str, list[Sample]],
    prefill_floor_s: float | None = None,
) -> Row:
    """The row of what has been measured so far; engines without a sample are left out.

    A ratio is refused where an engine or its peer did not generate what it was asked for, or the prompts differ: times
    of different work say nothing.
    """
    known = {name: rounds for name, rounds in samples.items() if rounds}
    tpot = {name: [_tpot_ms(sample, settings) for sample in rounds] for name, rounds in known.items()}
    prefill = {name: [1e3 * sample.prefill_s for sample in rounds] for name, rounds in known.items()}
    tpot_medians = {name: spread(values) for name, values in tpot.items()}
    prefill_medians = {name: spread(values) for name, values in prefill.items()}
    whole_s = {name: spread([sample.whole_s for sample in rounds]).median for name, rounds in known.items()}
    rivals = [name for name in known if name != OURS and OURS in known]
    refused = {name: why for name in rivals if (why := why_no_ratio(name, batch, settings, known))}
    compared = [name for name in rivals if name not in refused]
    output, total = batch * settings.output_length, batch * (settings.output_length + settings.input_length)
    floor_ms = None if floor_s is None else 1e3 * floor_s
    return Row(
        model=model,
        batch=batch,
        floor_ms=floor_ms,
        tpot_ms={name: each.median for name, each in tpot_medians.items()},
        prefill_ms={name: each.median for name, each in prefill_medians.items()},
        tpot_ms_range={name: (each.low, each.high) for name, each in tpot_medians.items()},
        prefill_ms_range={name: (each.low, each.high) for name, each in prefill_medians.items()},
        output_tokens_per_s={name: output / seconds for name, seconds in whole_s.items()},
        total_tokens_per_s={name: total / seconds for name, seconds in whole_s.items()},
        of_floor={name: floor_ms / each.median for name, each in tpot_medians.items() if floor_ms and each.median > 0},
        tpot_ratio={name: _ratio(tpot[OURS], tpot[name]) for name in compared},
        prefill_ratio={name: _ratio(prefill[OURS], prefill[name]) for name in compared},
        refused=refused,
        samples=dict(known),
        prefill_floor_ms=None if prefill_floor_s is None else 1e3 * prefill_floor_s,
    )


def why_no_ratio(peer: str, batch: int, settings: OfflineSettings, samples: Mapping[str, list[Sample]]) -> str | None:
    """Why Parhelion and a peer cannot be compared; None if they can."""
    for name in (OURS, peer):
        for number, sample in enumerate(samples[name], 1):
            for got, length in ((sample.prefill_tokens, 1), (sample.whole_tokens, settings.output_length)):
                if got != batch * length:
                    return (
                        f"{name} generated {got} tokens in round {number} where {batch * length} were asked for "
                        f"({batch} prompts, {length} each)"
                    )
    for number, (mine, theirs) in enumerate(zip(samples[OURS], samples[peer], strict=False), 1):
        if mine.prompt_checksum != theirs.prompt_checksum:
            return f"the prompts of round {number} differ"
        if min(_tpot_ms(mine, settings), _tpot_ms(theirs, settings)) <= 0:
            return f"in round {number} all tokens took no longer than the first: the output is too short to be timed"
    return None


def _tpot_ms(sample: Sample, settings: OfflineSettings) -> float:
    return 1e3 * (sample.whole_s - sample.prefill_s) / (settings.output_length - 1)


def _ratio(mine: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Within each round that both have finished."""
    return spread([b / a for a, b in zip(mine, theirs, strict=False)])


def _load_of(row: OnlineRow) -> tuple[str, str, int | None, float | None]:
    return row.model, row.load, row.concurrency, row.rate


def _largest(values: Mapping[tuple[str, str], float | None]) -> dict[str, float]:
    """Of all models, by engine."""
    largest: dict[str, float] = {}
    for (engine, _model), value in values.items():
        if value is not None:
            largest[engine] = max(value, largest.get(engine, value))
    return largest
