"""The compile matrix: every tile program, for the shapes of named models, built for every target or told why not."""

from __future__ import annotations

import functools
import importlib
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from parhelion.ops.contract import Contract
from parhelion.ops.registry import most_tokens
from parhelion.tuning.target import TARGETS, Target
from parhelion.tuning.workers import map_in_workers

NUM_TOKENS = (1, 16, 256)
"""The sizes of M that configs are asked for: a single token, a decode batch, a prefill chunk."""

LIMIT_S = 180.0
"""Seconds that the programs of one contract may take for one target."""


@dataclass(frozen=True)
class Build:
    """One program for one target.

    Attributes:
        op: the op.
        contract: its static dimensions, as ``Contract.key`` spells them.
        kernel: the tile program; an op may launch several.
        target: what for.
        num_tokens: the sizes of M, of those that were asked for, that launch just this program.
        reason: why it cannot be built; None if it is built.
        instead: what serves there when it is not built.
        config: the Helion config, in words.
        num_warps, registers, stack_bytes, shared_bytes, binary_bytes: what the program takes; see ``Built`` and
            ``Resources``. 0 if it is not built.
        seconds: what compiling took. Generating the code is not in it: that is done once for all targets.
    """

    op: str
    contract: str
    kernel: str
    target: str
    num_tokens: tuple[int, ...]
    reason: str | None = None
    instead: str | None = None
    config: str = ""
    num_warps: int = 0
    registers: int = 0
    stack_bytes: int = 0
    shared_bytes: int = 0
    binary_bytes: int = 0
    seconds: float = 0.0

    @property
    def built(self) -> bool:
        return self.reason is None


@dataclass(frozen=True)
class Task:
    """The programs of one contract for one target."""

    contract: Contract
    target: Target
    num_tokens: tuple[int, ...]


def build_matrix(
    contracts: Sequence[Contract],
    targets: Sequence[Target] = TARGETS,
    *,
    num_tokens: tuple[int, ...] = NUM_TOKENS,
    jobs: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Build]:
    """Build all programs of the contracts for the targets, in the order of both.

    Args:
        jobs: processes; each imports Helion once (seconds).
        progress: told how many pairs of contract and target are done, and how many there are.
    """
    groups = [[Task(contract, target, num_tokens) for target in targets] for contract in contracts]
    return build_tasks(groups, jobs=jobs, progress=progress)


def build_tasks(
    groups: Sequence[Sequence[Task]], *, jobs: int, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Build]:
    """Build all programs of the tasks, of which none is there twice, in their order.

    Args:
        groups: those of one group are built one after the other in one process, which generates code for all targets
            once.
        jobs, progress: see ``build_matrix``.
    """
    total = sum(map(len, groups))
    order = {task_key(task): number for number, task in enumerate(task for group in groups for task in group)}
    builds: list[Build] = []
    progress(0, total)
    with tempfile.TemporaryDirectory(prefix="parhelion-build-") as folder:
        prepare = functools.partial(prepare_worker, folder)
        results = map_in_workers(build, groups, _failure, jobs=jobs, limit_s=LIMIT_S, prepare=prepare)
        for done, result in enumerate(results, start=1):
            builds += result
            progress(done, total)
    return sorted(builds, key=lambda each: order[each.contract, each.target])


def task_key(task: Task) -> tuple[str, str]:
    """What identifies a task among the builds that come of it."""
    return task.contract.key(), task.target.name


def build(task: Task) -> list[Build]:
    """Build the programs of a task here, for no more tokens than there are programs for; never raises for one that
    cannot be built.
    """
    from parhelion.tuning.cross_compile import BuildError, cross_compile, short_reason, specialize
    from parhelion.tuning.record import record

    found: dict[Any, Build] = {}
    for num_tokens in dict.fromkeys(most_tokens(task.contract, each) for each in task.num_tokens):
        try:
            launches = record(task.contract, num_tokens, task.target.name, _generated_code())
        # Generating code may fail in as many ways as compiling it.
        except Exception as error:
            _merge(found, str(error), replace(_failure(task, short_reason(error, ""))[0], num_tokens=(num_tokens,)))
            continue
        for launch in launches:
            key = (launch.source, launch.kernel, str(specialize(launch)), str(launch.options))
            if key in found:
                _merge(found, key, replace(found[key], num_tokens=(num_tokens,)))
                continue
            row = Build(
                task.contract.name, *task_key(task)[:1], launch.kernel, task.target.name, (num_tokens,),
                config=str(launch.config),
            )  # fmt: skip
            try:
                binary = cross_compile(launch, task.target)
            except BuildError as error:
                found[key] = replace(row, reason=str(error), instead=task.contract.instead)
                continue
            found[key] = replace(
                row,
                num_warps=binary.num_warps,
                registers=binary.resources.registers,
                stack_bytes=binary.resources.stack_bytes,
                shared_bytes=binary.shared_bytes,
                binary_bytes=binary.size,
                seconds=binary.seconds,
            )
    return list(found.values())


def prepare_worker(folder: str) -> None:
    """Set up a process that only builds: no interpreter, a fresh compile cache, no paths of this machine in binaries.

    Args:
        folder: for all that the process writes; it may be killed at any time, so its parent removes it.
    """
    # An interruption from the keyboard is its parent's, which ends it in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tempfile.tempdir = folder
    os.environ["TRITON_CACHE_DIR"] = os.path.join(folder, "triton")
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    # Triton's default so far, which it wants to hear.
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    importlib.import_module("parhelion.tuning.build_imports")


@functools.cache
def _generated_code() -> Any:
    """What this process has generated so far."""
    from parhelion.tuning.record import GeneratedCode

    return GeneratedCode()


def _merge(found: dict[Any, Build], key: Any, row: Build) -> None:
    """Add a row, or only its M to the row that is there."""
    known = found.get(key)
    if known is None:
        found[key] = row
    elif row.num_tokens[0] not in known.num_tokens:
        found[key] = replace(known, num_tokens=known.num_tokens + row.num_tokens)


def _failure(task: Task, reason: str) -> list[Build]:
    contract = task.contract
    return [
        Build(contract.name, contract.key(), contract.name, task.target.name, task.num_tokens, reason, contract.instead)
    ]
