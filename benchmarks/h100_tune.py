"""Tuning on a GPU, and beside it Helion's own autotuner at full effort on some of the same matrix products.

    PYTHONPATH=. python benchmarks/h100_tune.py --model qwen3-8b --quantization fp8_per_token --budget 600
    PYTHONPATH=. python benchmarks/h100_tune.py --skip-tune --full-effort-rows 6 --only-row 0 --full-effort-seconds 300

The pack is written to ``--pack``, and read from there if nothing is tuned. The result is written after every part, so
that a run that is cut off leaves what it has; with ``--skip-tune`` it is added to what the file holds. Which products
are searched is known before anything is tuned. What the pack holds when a search has ended is timed right after it, so
that one device can tune while another one searches.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import torch

sys.path.insert(0, str(Path(__file__).parent))

from full_effort_table import Comparison
from h100_ops import as_json

from parhelion.bench.machine import command_line
from parhelion.errors import ParhelionError
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.kernel_timer import Timing
from parhelion.ops.launching import launch_module
from parhelion.packs.format import TILE_PROGRAMS, Candidate, Pack, Row
from parhelion.packs.store import StoredPack, read_pack
from parhelion.tuning.compile_pool import CompilePool, import_compilers
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.gpu_worker import GpuTimer
from parhelion.tuning.helion_search import KERNELS, FullEffort, full_effort_search
from parhelion.tuning.jobs import TimingJob, Trial
from parhelion.tuning.model_calls import tuned_model
from parhelion.tuning.plan import make_plan, why_not_on
from parhelion.tuning.programs import Program
from parhelion.tuning.target import target
from parhelion.tuning.tune import TuneOptions, TuneProgress, tune_each
from parhelion.tuning.tune_ranks import tune_all_ranks

RESULT = Path(__file__).parent / "results" / "h100_tune.json"
PACK = Path("h100-tuned.zip")

TIMING = Timing(rounds=20, warmup=3)
_DEADLINE_S = 60.0

_SEARCHED = "scaled_mm"
"""The op that Helion's search has a twin of."""


@dataclass(frozen=True)
class TunedRow:
    """What serves one contract and M.

    Attributes:
        op, contract: which.
        m: tokens that were measured.
        k, n: inputs and outputs of a matrix product; None of other ops.
        provider, time_us: who is fastest.
        untuned_us: the tile program without tuning; 0 if it was not measured.
        floor_us: what the device allows.
        rivals: every other provider's time, in microseconds.
    """

    op: str
    contract: str
    m: int
    k: int | None
    n: int | None
    provider: str
    time_us: float
    untuned_us: float
    floor_us: float
    rivals: dict[str, float]


def rows_of(pack: Pack, model: str, tp: Sequence[int]) -> list[Row]:
    """What a model calls, divided among so many ranks."""
    entries = [entry for entry in pack.models if entry.name == model and entry.tp in tp]
    called = {key for entry in entries for key in entry.contracts}
    return [row for row in pack.rows if row.contract in called]


def tuned_rows(rows: Iterable[Row]) -> list[TunedRow]:
    """Those that were measured."""
    found = []
    for row in rows:
        if not row.measured_at:
            continue
        contract = contract_of_key(row.contract)
        rivals: dict[str, float] = {}
        for candidate in (row.best, *row.runners_up):
            if candidate.provider != row.best.provider:
                rivals[candidate.provider] = min(candidate.time_us, rivals.get(candidate.provider, candidate.time_us))
        best = row.best
        found.append(
            TunedRow(
                op=row.op,
                contract=row.contract,
                m=row.measured_at,
                k=getattr(contract, "in_features", None),
                n=getattr(contract, "out_features", None),
                provider=best.provider,
                time_us=best.time_us,
                untuned_us=row.untuned_us,
                floor_us=row.floor_us,
                rivals=rivals,
            )
        )
    return found


def sampled(rows: Iterable[Row], count: int) -> list[Row]:
    """Matrix products, spread evenly over shapes and sizes of M, whatever serves them."""
    able = sorted((row for row in rows if row.op == _SEARCHED), key=lambda row: (row.num_tokens, row.contract))
    if count >= len(able):
        return able
    return [able[(2 * number + 1) * len(able) // (2 * count)] for number in range(count)]


def compared(
    path: Path, rows: Sequence[Row], seconds: float, device: str, kernels: Sequence[str] = KERNELS
) -> Iterator[Comparison]:
    """Search each row at full effort, and time what the pack holds for it by then right after that."""
    for row in rows:
        contract: Any = contract_of_key(row.contract)
        start = time.monotonic()
        full: FullEffort | None = None
        problem = None
        try:
            full = full_effort_search(contract, row.num_tokens, seconds, device, kernels=kernels)
        except ParhelionError as error:
            problem = str(error)
        full_s = time.monotonic() - start
        stored = read_pack(path)
        key = (row.op, row.contract, row.num_tokens)
        tuned = next(each for each in stored.pack.rows if (each.op, each.contract, each.num_tokens) == key)
        tile = _tile_program(tuned)
        again = _timed_again(stored, tuned, [tuned.best, *([tile] if tile not in (None, tuned.best) else [])], device)
        yield Comparison(
            op=row.op,
            m=row.num_tokens,
            k=contract.in_features,
            n=contract.out_features,
            provider=tuned.best.provider,
            found_us=again[0].time_us,
            tile_us=again[-1].time_us if tile is not None else None,
            full_us=full.time_us.median if full is not None else None,
            tune_s=tuned.tune_s,
            full_s=round(full_s, 1),
            searches=full.searches if full is not None else 0,
            config=tile.config if tile is not None else None,
            full_config=full.config if full is not None else "",
            problem="; ".join(
                filter(None, (problem, *(full.problems if full else ()), *(each.problem for each in again)))
            )
            or None,
        )


def _tile_program(row: Row) -> Candidate | None:
    """The fastest candidate whose binaries the pack holds."""
    own = (each for each in (row.best, *row.runners_up) if each.provider in TILE_PROGRAMS and each.binaries)
    return next(own, None)


@dataclass(frozen=True)
class _Again:
    """Microseconds, or why there are none."""

    time_us: float | None = None
    problem: str | None = "the deadline passed"


def _timed_again(stored: StoredPack, row: Row, candidates: Sequence[Candidate], device: str) -> list[_Again]:
    """Each candidate, as the tuner times it."""
    trials = tuple(_trial(stored, row.op, candidate) for candidate in candidates)
    job = TimingJob(contract_of_key(row.contract), row.num_tokens, trials, TIMING, True)
    found = [_Again()] * len(trials)
    # A process of its own each time: while Helion searches, nobody else is on the device.
    with GpuTimer(torch.device(device)) as timer:
        for number, outcome in timer.run(job, _DEADLINE_S):
            found[number] = _Again(outcome.time_us.median if outcome.time_us is not None else None, outcome.problem)
    return found


def _trial(stored: StoredPack, op: str, candidate: Candidate) -> Trial:
    if candidate.config is None:
        return Trial(candidate.provider, None)
    programs = tuple(
        Program(binary, stored.binary(binary)) for binary in stored.pack.binaries if binary.file in candidate.binaries
    )
    return Trial(candidate.provider, msgspec.convert(candidate.config, launch_module(op).Config), programs)


def tune_model(options: argparse.Namespace) -> tuple[float, list[str]]:
    """Tune, and write the pack. Returns the seconds that it took, and the tuner's notes."""
    device = torch.device(options.device)
    models = [tuned_model(options.model, options.quantization, tp) for tp in options.tp]
    start = time.monotonic()
    import_compilers()
    with GpuTimer(device) as timer:
        fingerprint = timer.fingerprint
        assert fingerprint is not None, "tuning needs a GPU"
        processors = fingerprint.num_processors
        known = replace(gemm_target(fingerprint.target), num_processors=processors)
        sizes = tuple(int(size) for size in options.sizes.split(",") if size)
        only = tuple(name for name in options.only.split(",") if name)
        plans = [make_plan(model, known, why_not_on(device), ops=only, sizes=sizes) for model in models]
        built_for = target(fingerprint.target)
        with CompilePool(built_for, num_processors=processors, jobs=options.jobs) as pool:
            seeds = tuple(read_pack(path).pack for path in options.seed_packs)
            left_s = max(0.0, options.budget - (time.monotonic() - start))
            asked = TuneOptions(options.pack, left_s, options.effort, seeds, command_line(sys.argv))
            tuner = timer.tune_step
            result = tune_each(plans, built_for, fingerprint, timer, pool, asked, step_tuner=tuner, progress=say)
            if not only:
                timer.close()
                result = tune_all_ranks(plans, built_for, fingerprint, pool, asked, device, result, sizes)
    return time.monotonic() - start, list(result.notes)


def say(progress: TuneProgress) -> None:
    """One line for every row that is done."""
    row = progress.current
    doing = f"{row.contract.key()} M = {row.bucket}" if row is not None else ""
    done = f"{progress.covered}/{progress.num_rows}"
    print(f"{progress.seconds_left:5.0f} s left, {progress.stage} {done} {doing}", flush=True)


def report_of(pack: Pack, options: argparse.Namespace, tune_s: float, notes: Sequence[str]) -> dict[str, Any]:
    """The result without comparisons."""
    return {
        "device": pack.fingerprint.device,
        "versions": pack.versions,
        "command": command_line(sys.argv),
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": options.model,
        "quantization": options.quantization or "unquantized",
        "tp": list(options.tp),
        "tune_s": round(tune_s, 1),
        "ledger": msgspec.to_builtins(pack.ledger),
        "notes": list(notes),
        "rows": [asdict(row) for row in tuned_rows(rows_of(pack, options.model, options.tp))],
        "full_effort": [],
    }


def report_before(path: Path) -> dict[str, Any] | None:
    """What an earlier run wrote; None if there is nothing."""
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found


def write(report: dict[str, Any], path: Path) -> None:
    """As far as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(as_json(report))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-8b")
    parser.add_argument("--quantization", default="fp8_per_token", help="a scheme's name; empty for none")
    parser.add_argument("--tp", default="1", help="ranks that share each layer, separated by commas")
    parser.add_argument("--budget", type=float, default=600.0, help="seconds of tuning")
    parser.add_argument("--effort", default="normal", help="quick, normal or full")
    parser.add_argument("--sizes", default="", help="of M, separated by commas; none means all buckets")
    parser.add_argument("--only", default="", help="ops, separated by commas; none means all")
    parser.add_argument("--jobs", type=int, default=None, help="processes that compile; none means one a core")
    parser.add_argument("--pack", type=Path, default=PACK)
    parser.add_argument("--seed-packs", type=Path, nargs="*", default=(), help="whose configs are tried first")
    parser.add_argument("--skip-tune", action="store_true", help="take the pack as it is")
    parser.add_argument("--full-effort-rows", type=int, default=0, help="how many rows Helion's search is given")
    parser.add_argument("--only-row", type=int, nargs="*", help="of these, by number; none means all")
    parser.add_argument("--full-effort-seconds", type=float, default=300.0, help="for each of them")
    parser.add_argument("--full-effort-kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args(argv)
    options.quantization = options.quantization or None
    options.tp = tuple(sorted({int(size) for size in options.tp.split(",")}))
    return options


def main() -> None:
    """Tune, compare, write."""
    options = parse()
    tune_s, notes = (0.0, []) if options.skip_tune else tune_model(options)
    stored = read_pack(options.pack)
    report = report_before(options.output) if options.skip_tune else None
    if report is None:
        report = report_of(stored.pack, options, tune_s or stored.pack.ledger.tune_s, notes)
    write(report, options.output)
    for note in notes:
        print(note)
    rows = sampled(rows_of(stored.pack, options.model, options.tp), options.full_effort_rows)
    if options.only_row:
        rows = [rows[number] for number in options.only_row]
    asked = (options.full_effort_seconds, options.device, options.full_effort_kernels)
    for comparison in compared(options.pack, rows, *asked):
        print(comparison, flush=True)
        report["full_effort"].append(asdict(comparison) | {"command": command_line(sys.argv)})
        write(report, options.output)


if __name__ == "__main__":
    main()
