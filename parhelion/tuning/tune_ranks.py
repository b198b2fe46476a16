"""Rows of ops that several ranks compute together, tuned on as many GPUs and put into the pack of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import torch

from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import BUCKETS
from parhelion.ops.registry import op, op_names
from parhelion.ops.tile_programs import all_candidates
from parhelion.packs.format import TILE_PROGRAMS, Fingerprint, Ledger, Pack
from parhelion.packs.location import pack_name
from parhelion.tuning.build_rows import untuned_config
from parhelion.tuning.head_calls import TunedHead, shared_head_contracts
from parhelion.tuning.jobs import Compiler, Outcome, Request, Trial
from parhelion.tuning.model_calls import TunedModel, shared_contracts
from parhelion.tuning.plan import Plan, PlannedRow
from parhelion.tuning.programs import Program
from parhelion.tuning.rank_timing import RankJob, time_on_ranks
from parhelion.tuning.row_state import RowState
from parhelion.tuning.target import Target
from parhelion.tuning.tune import TuneOptions, TuneResult, facts_of
from parhelion.tuning.tuned_pack import read_before, tuned_pack, write

LIMIT_S = 300.0
"""Seconds that all trials together may take."""

Built = dict[Request, tuple[Program, ...]]

TimeOnRanks = Callable[[Sequence[RankJob], Sequence[torch.device], float], list[list[Outcome]]]


def tune_ranks(
    model: TunedModel | TunedHead,
    target: Target,
    configs_target: GemmTarget,
    fingerprint: Fingerprint,
    compiler: Compiler,
    options: TuneOptions,
    devices: Sequence[torch.device],
    *,
    sizes: Sequence[int] = (),
    measure: TimeOnRanks = time_on_ranks,
) -> tuple[Pack | None, list[str]]:
    """Tune what a model's ranks call together and write it into the pack, beside what is there.

    Args:
        model: of as many ranks as there are devices; it may be a head.
        configs_target: as configs know the target.
        options: its output is the pack.
        devices: of one kind.
        sizes: the buckets; none means all.
        measure: times trials on all ranks.

    Returns:
        The pack, None if there was nothing to tune or nothing worked; and what did not go as it should.
    """
    start = time.monotonic()
    shared = shared_head_contracts(model) if isinstance(model, TunedHead) else shared_contracts(model, configs_target)
    rows = [
        RowState(PlannedRow(contract, bucket, count), 0.0, untuned_config(contract, bucket, target))
        for contract, count in shared.items()
        if contract.name in op_names()
        for bucket in (sizes or BUCKETS)
    ]
    if not rows:
        return None, []
    built = _built(rows, configs_target, compiler)
    jobs = [_job(row, built) for row in rows]
    notes = []
    for row, job, outcomes in zip(rows, jobs, measure(jobs, devices, LIMIT_S), strict=True):
        for trial, outcome in zip(job.trials, outcomes, strict=False):
            row.met((trial.provider, trial.config), outcome, 0.0, is_final=True)
        if row.serving is None:
            problems = "; ".join(dict.fromkeys(f"{name}: {problem}" for (name, _), problem in row.problems.items()))
            notes.append(f"{row.contract.key()} at M = {row.bucket} is not in the pack: {problems or 'not measured'}")
    served = [row for row in rows if row.serving is not None]
    if not served:
        return None, notes
    programs = {row: _programs(row, built) for row in served}
    before = read_before(options.output, fingerprint)
    facts = facts_of(model, [row.contract for row in rows], fingerprint, options.command)
    ledger = Ledger() if before is None else before.pack.ledger
    ledger = msgspec.structs.replace(ledger, tune_s=round(ledger.tune_s + time.monotonic() - start, 1))
    made = tuned_pack(pack_name(options.output), facts, served, programs, ledger)
    return write(made, before, options.output), notes


def tune_all_ranks(
    plans: Sequence[Plan],
    target: Target,
    fingerprint: Fingerprint,
    compiler: Compiler,
    options: TuneOptions,
    first: torch.device,
    result: TuneResult,
    sizes: Sequence[int] = (),
) -> TuneResult:
    """What ``tune_ranks`` makes of plans of several ranks, as far as there are GPUs for them, behind what was tuned.

    Args:
        first: the GPU that was tuned on.
        result: of that.
    """
    pack, notes = result.pack, [note for note in result.notes if not any(note in plan.notes for plan in plans)]
    for plan in plans:
        devices = ranks_here(first, plan.model.tp)
        if len(devices) < plan.model.tp:
            notes += plan.notes
            continue
        made, said = tune_ranks(plan.model, target, plan.target, fingerprint, compiler, options, devices, sizes=sizes)
        pack = made or pack
        notes += said
    return replace(result, pack=pack, notes=tuple(notes))


def ranks_here(first: torch.device, count: int) -> list[torch.device]:
    """So many GPUs of the first one's kind, from it on; fewer if there are not so many."""
    name = torch.cuda.get_device_name(first)
    numbers = range(first.index or 0, torch.cuda.device_count())
    return [torch.device("cuda", each) for each in numbers if torch.cuda.get_device_name(each) == name][:count]


def _programs(row: RowState, built: Built) -> tuple[Program, ...]:
    """What serves the row; nothing if no tile program does."""
    serving = row.serving
    assert serving is not None
    return built[row.contract, row.bucket, serving.config] if serving.provider in TILE_PROGRAMS else ()


def _built(rows: Sequence[RowState], configs_target: GemmTarget, compiler: Compiler) -> Built:
    """The programs of all candidates that can be built, programmatic ones too."""
    requests = [
        (row.contract, row.bucket, config)
        for row in rows
        for each in all_candidates(row.contract, row.bucket, configs_target)
        for config in ((each, replace(each, programmatic=True)) if configs_target.programmatic else (each,))
    ]
    found = {}
    for index, programs, _ in compiler.compile(requests):
        if not isinstance(programs, str):
            found[requests[index]] = programs
    return found


def _job(row: RowState, built: Built) -> RankJob:
    own = [
        Trial(*row.choice(config), programs)
        for (contract, bucket, config), programs in built.items()
        if (contract, bucket) == (row.contract, row.bucket)
    ]
    others = [Trial(each.name, None) for each in op(row.contract.name).providers if each.name == "torch"]
    return RankJob(row.contract, row.bucket, (*own, *others))
