"""What sums over ranks take, launch by launch in a CUDA graph, beside the links' own limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from tp_ranks import gathered

from parhelion.distributed.group import Group
from parhelion.errors import ParhelionError
from parhelion.ops.check import check
from parhelion.ops.collectives.all_reduce import AllReduce
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.provider import BaseProvider, Provider
from parhelion.ops.quantize import FP8
from parhelion.ops.registry import COLLECTIVES, op, op_names
from parhelion.tuning.rank_timing import rank_inputs

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
HIDDEN_SIZE = 4096
LARGE_BYTES = 256 << 20
CALLS = 20
"""Of a graph."""
ROUNDS = 30
_FUSED = "all_reduce_rms_norm"


def measure_collectives(
    group: Group, device: torch.device, sizes: tuple[int, ...], hidden_size: int, large_bytes: int, rounds: int
) -> Iterator[dict[str, Any]]:
    """First the links, then every provider of every op at every M, checked beside the reference."""
    links = measure_links(group, device, large_bytes, rounds)
    yield links
    for size in sizes:
        for contract in contracts(hidden_size, group.size):
            for provider in rivals(contract):
                row = _measured(contract, provider, size, group, device, rounds)
                sent = size * hidden_size * 2 * 2 * (group.size - 1) / group.size
                yield row | {"floor_us": _floor_us(sent, links)}


def contracts(hidden_size: int, num_ranks: int) -> list[Contract]:
    """What is measured: the sum alone and, where there is such an op, with the norm behind it."""
    found: list[Contract] = [AllReduce(hidden_size, num_ranks)]
    if _FUSED in (*op_names(), *COLLECTIVES):
        kind: Any = op(_FUSED).contract
        found += [kind(hidden_size, num_ranks, quant_dtype=each) for each in (None, FP8)]
    return found


def rivals(contract: Contract) -> list[Provider]:
    """The op's providers and, of a sum with something behind it, torch's sum with the tile program of that."""
    found = [each for each in op(contract.name).providers if each.name != "reference"]
    return found if getattr(contract, "own_part", None) is None else [*found, Apart()]


class Apart(BaseProvider):
    """``torch.distributed.all_reduce``, and then what the contract names as its own part, by its tile program."""

    name = "torch, then helion"

    def why_not(self, device: torch.device) -> str | None:
        return None if device.type == "cuda" else "it needs a GPU"

    def launcher(self, contract: Contract) -> Launcher:
        part: Contract = contract.own_part  # type: ignore[attr-defined]
        launch = op(part.name).provider("helion").launcher(part)

        def summed(hidden: torch.Tensor, *others: torch.Tensor) -> Any:
            dist.all_reduce(hidden)
            return launch(hidden, *others)

        return summed


def measure_links(group: Group, device: torch.device, large_bytes: int, rounds: int) -> dict[str, Any]:
    """Bytes a second of a large sum (what each rank sends) and of a copy from GPU to GPU; a launch in a graph."""
    large = torch.zeros(large_bytes // 2, dtype=torch.bfloat16, device=device)
    sum_s = median_s(lambda: dist.all_reduce(large), 1, group, device, rounds)
    small = torch.zeros(1024, device=device)
    launch_s = median_s(lambda: small.add_(1), CALLS, group, device, rounds)
    return {
        "what": "links",
        "large_bytes": large_bytes,
        "all_reduce_bytes_per_s": 2 * (group.size - 1) / group.size * large_bytes / sum_s,
        "copy_bytes_per_s": _copy_bandwidth(group, device, large_bytes, rounds),
        "launch_us": 1e6 * launch_s,
        "passed": True,
    }


def _copy_bandwidth(group: Group, device: torch.device, large_bytes: int, rounds: int) -> float | None:
    """From rank 0's GPU to the next one, while the others wait; None where no GPU reaches another."""
    found = 0.0
    if device.type == "cuda" and group.rank == 0 and torch.cuda.can_device_access_peer(device.index, device.index + 1):
        ours = torch.zeros(large_bytes, dtype=torch.uint8, device=device)
        theirs = torch.zeros(large_bytes, dtype=torch.uint8, device=torch.device("cuda", device.index + 1))
        seconds = []
        for _ in range(rounds + 1):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            theirs.copy_(ours)
            end.record()
            end.synchronize()
            seconds.append(begin.elapsed_time(end) / 1e3)
        found = large_bytes / statistics.median(seconds[1:])
    return gathered(found, group, device)[0] or None


def _floor_us(sent_bytes: float, links: dict[str, Any]) -> float:
    """A launch, and what a rank must send at the best bandwidth that was seen."""
    bandwidth = max(links["all_reduce_bytes_per_s"], links["copy_bytes_per_s"] or 0.0)
    return float(links["launch_us"] + 1e6 * sent_bytes / bandwidth)


def _measured(
    contract: Contract, provider: Provider, num_tokens: int, group: Group, device: torch.device, rounds: int
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "what": contract.name,
        "contract": contract.key(),
        "provider": provider.name,
        "m": num_tokens,
        "time_us": None,
        "rel_err": None,
        "problem": provider.why_not(device) or provider.refuses(contract),
        "passed": True,
    }
    if row["problem"] is not None:
        return row
    try:
        launch = provider.launcher(contract)
        inputs = rank_inputs(contract, num_tokens, group.rank, group.size, device)
        errors = check(contract, launch, inputs)
        problems = [f"{each.output} {each.problem}" for each in errors if each.problem is not None]
        row["rel_err"] = max(each.relative for each in errors)
        # Zeros stay zeros, however often they are added up.
        timed = (torch.zeros_like(inputs[0]), *inputs[1:])
        row["time_us"] = 1e6 * median_s(lambda: launch(*timed), CALLS, group, device, rounds)
    except (RuntimeError, ParhelionError, AssertionError, TypeError) as error:
        problems = [f"{type(error).__name__}: {str(error)[:300]}"]
    return row | {"problem": "; ".join(problems) or None, "passed": not problems}


def median_s(
    call: Callable[[], object] | Launcher, calls: int, group: Group, device: torch.device, rounds: int
) -> float:
    """Seconds of one of ``calls`` calls in a row, all ranks together: the median of the slowest rank's."""
    for _ in range(3):
        call()
    run = _captured(call, calls, device)
    token = torch.zeros(1, device=device)
    seconds = []
    for _ in range(rounds + 2):
        # Until all ranks are there.
        dist.all_reduce(token)
        seconds.append(_seconds_of(run, device) / calls)
    return max(gathered(statistics.median(seconds[2:]), group, device))


def _captured(call: Callable[[], object], calls: int, device: torch.device) -> Callable[[], object]:
    """All calls as one graph; on a CPU one after the other."""
    if device.type == "cpu":
        return lambda: [call() for _ in range(calls)]
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        call()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            kept = [call() for _ in range(calls)]
        finally:
            graph.capture_end()
    del kept
    return graph.replay


def _seconds_of(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
