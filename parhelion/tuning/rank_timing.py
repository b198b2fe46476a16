"""Timing what several ranks compute together: a process on each of as many devices, all of them at the same trial.

A trial that hangs, or that fails on one rank alone, leaves the others waiting: then all processes are killed, and what
was not measured stays unmeasured.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from parhelion.distributed.rendezvous import file_store, join, leave
from parhelion.errors import first_line
from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.inputs import map_tensors
from parhelion.ops.kernel_timer import Timing, random_inputs
from parhelion.ops.oracle import Oracle
from parhelion.ops.pack_kernels import Load
from parhelion.platform.driver import load_function
from parhelion.platform.measure import scaled, summarize, time_rounds
from parhelion.tuning.jobs import Outcome, Trial
from parhelion.tuning.timing_jobs import launcher_of

LAUNCHES = 24
"""Of a graph: what starting a graph costs is then little, and the ranks find into step."""

TIMING = Timing(rounds=15)

_PATIENCE_S = 5.0

_PROBLEM_BYTES = 400
"""Of what a rank says of a problem: more than a line has."""


@dataclass(frozen=True)
class RankJob:
    """The trials of one contract and M."""

    contract: Contract
    num_tokens: int
    trials: tuple[Trial, ...]


def time_on_ranks(
    jobs: Sequence[RankJob], devices: Sequence[torch.device], limit_s: float, load: Load = load_function
) -> list[list[Outcome]]:
    """Each job's outcomes, in the order of its trials: the slowest rank's times, and the first one's problems.

    Args:
        devices: of the ranks, in order.
        limit_s: seconds that all of it may take. Jobs that are not done by then have no outcomes.
        load: brings a binary onto a device.
    """
    with tempfile.TemporaryDirectory(prefix="parhelion-ranks-") as folder:
        of_ranks = _run_ranks(jobs, devices, f"{folder}/store", limit_s, load)
    done = min(len(each) for each in of_ranks)
    return [
        [_together(outcomes) for outcomes in zip(*(each[index] for each in of_ranks), strict=True)]
        for index in range(done)
    ] + [[] for _ in range(len(jobs) - done)]


def _run_ranks(
    jobs: Sequence[RankJob], devices: Sequence[torch.device], path: str, limit_s: float, load: Load
) -> list[list[list[Outcome]]]:
    """What each rank said in time of the jobs.

    Args:
        path: of the file in which they meet.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for rank in range(len(devices)):
        ours, theirs = context.Pipe(duplex=False)
        task = (rank, tuple(devices), path, tuple(jobs), load, theirs)
        processes.append(context.Process(target=_run_rank, args=task, daemon=True))
        pipes.append(ours)
        processes[-1].start()
        theirs.close()
    try:
        return _collected(pipes, len(jobs), time.monotonic() + limit_s)
    finally:
        for process in processes:
            process.join(_PATIENCE_S)
            process.kill()
            process.join()


def _collected(pipes: Sequence[Connection], count: int, deadline: float) -> list[list[list[Outcome]]]:
    """What each rank said in time of so many jobs."""
    found: list[list[list[Outcome]]] = [[] for _ in pipes]
    open_pipes = dict(enumerate(pipes))
    while open_pipes and (left_s := deadline - time.monotonic()) > 0:
        for ready in wait(list(open_pipes.values()), left_s):
            rank = next(number for number, pipe in open_pipes.items() if pipe is ready)
            try:
                found[rank].append(open_pipes[rank].recv())
            except EOFError:
                del open_pipes[rank]
                continue
            if len(found[rank]) == count:
                del open_pipes[rank]
    return found


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    failed = next((each for each in outcomes if each.problem is not None), None)
    if failed is not None:
        return failed
    slowest = max(outcomes, key=lambda each: each.time_us.median if each.time_us is not None else 0.0)
    return replace(slowest, rel_err=max(each.rel_err for each in outcomes))


def _run_rank(
    rank: int, devices: Sequence[torch.device], path: str, jobs: Sequence[RankJob], load: Load, pipe: Connection
) -> None:
    device = devices[rank]
    join(file_store(path, len(devices)), rank, len(devices), device)
    try:
        with torch.inference_mode():
            for job in jobs:
                pipe.send(_outcomes(job, rank, device, load))
    finally:
        leave()
        pipe.close()


def rank_inputs(contract: Contract, num_tokens: int, rank: int, num_ranks: int, device: torch.device) -> Tensors:
    """A rank's own part of a sum, the contract's first input, and else what all ranks have.

    No sum of the parts has more than bfloat16's eight bits, so that none is rounded on its way around the ranks: codes
    next to zero would be many steps off then, and nobody to blame.
    """
    whole, *shared = random_inputs(contract, num_tokens, device)
    most = 256 // num_ranks
    generator = torch.Generator(device).manual_seed(1 + rank)
    part = torch.randint(-most, most + 1, whole.shape, generator=generator, device=device) / 32
    return (part.to(whole.dtype), *shared)


def _outcomes(job: RankJob, rank: int, device: torch.device, load: Load) -> list[Outcome]:
    inputs = rank_inputs(job.contract, job.num_tokens, rank, dist.get_world_size(), device)
    oracle = Oracle(job.contract, inputs)
    return [_outcome(job, trial, inputs, oracle, device, load) for trial in job.trials]


def _outcome(
    job: RankJob, trial: Trial, inputs: tuple[Any, ...], oracle: Oracle, device: torch.device, load: Load
) -> Outcome:
    try:
        launch = launcher_of(job.contract, trial, device, load)
        errors = oracle.compare(launch)
        rel_err = max((error.relative for error in errors), default=0.0)
        wrong = next((f"{each.output} {each.problem}" for each in errors if each.problem is not None), None)
    except Exception as error:
        launch, rel_err, wrong = None, 0.0, first_line(error)
    # All ranks time a trial, or none does.
    problem = _first_problem(wrong, device)
    if problem is not None or launch is None:
        return Outcome(trial.provider, trial.config, None, rel_err, problem)
    seconds = _seconds(launch, map_tensors(inputs, torch.clone), device)
    return Outcome(trial.provider, trial.config, scaled(summarize(seconds), 1e6), rel_err)


def _first_problem(own: str | None, device: torch.device) -> str | None:
    """The first of the ranks' problems; None if none of them has any."""
    said = torch.zeros(_PROBLEM_BYTES, dtype=torch.uint8)
    encoded = (own or "").encode()[:_PROBLEM_BYTES]
    said[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    problems = [torch.empty_like(said, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(problems, said.to(device))
    for rank, each in enumerate(problems):
        if problem := bytes(each.tolist()).rstrip(b"\0").decode(errors="replace"):
            return f"on rank {rank}: {problem}"
    return None


def _seconds(launch: Launcher, inputs: tuple[Any, ...], device: torch.device) -> list[float]:
    """Of one launch: in a graph of many on GPUs, which all ranks start together."""
    if device.type != "cuda":
        return time_rounds(functools.partial(launch, *inputs), rounds=TIMING.rounds, warmup=TIMING.warmup)
    replay = _captured(launch, inputs, device)
    seconds = []
    for _ in range(TIMING.rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        dist.barrier()
        torch.cuda.synchronize(device)
        begin.record()
        replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / LAUNCHES)
    return seconds


def _captured(launch: Launcher, inputs: tuple[Any, ...], device: torch.device) -> Callable[[], None]:
    """A graph of launches one behind the other, as the layers of a model make them."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(TIMING.warmup):
            launch(*inputs)
        torch.cuda.synchronize(device)
        graph = torch.cuda.CUDAGraph()
        # NCCL's own threads ask the device about events meanwhile.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for _ in range(LAUNCHES):
                launch(*inputs)
        finally:
            graph.capture_end()
    graph.replay()
    torch.cuda.synchronize(device)
    replay: Callable[[], None] = graph.replay
    return replay
