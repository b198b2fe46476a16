"""How long one launch takes: CUDA-graph replays over rotating buffers on a GPU, a plain loop on a CPU.

A serving engine meets every weight once a step, long after the last time: nothing of it is in the L2 cache. So a graph
holds many launches, each with inputs and outputs of its own, and before a replay the cache is filled with other data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from parhelion.ops.contract import Contract, Launcher, Tensors
from parhelion.ops.inputs import RelatedInputs, empty_inputs, map_tensors, tensors_in
from parhelion.platform.ceilings import Ceilings, l2_bytes
from parhelion.platform.measure import Summary, summarize, time_rounds

LEAST_LAUNCHES = 8
MOST_LAUNCHES = 64
"""Launches of a graph, at most: with so many the cost of starting the graph is below 0.1 us a launch."""

MOST_INPUT_BYTES = 8 << 30
"""Device memory that rotating inputs may take."""


@dataclass(frozen=True)
class Timing:
    """How much is measured.

    Attributes:
        rounds: replays (on a CPU, calls) that count; each is one value of the sample.
        warmup: calls beforehand, of which the first compiles.
    """

    rounds: int = 20
    warmup: int = 3


USUAL = Timing()


def time_launcher(launch: Launcher, sets: Sequence[Tensors], device: torch.device, timing: Timing = USUAL) -> Summary:
    """Seconds of one call, inputs and weights cold.

    Args:
        sets: equal inputs in different places, as ``rotating_inputs`` makes them.

    Raises whatever the launcher raises; on a GPU also if it cannot be captured in a graph.
    """
    if device.type != "cuda":
        return summarize(time_rounds(lambda: launch(*sets[0]), rounds=timing.rounds, warmup=timing.warmup))
    return summarize(_replay_seconds(launch, sets, device, timing))


def floor_us(contract: Contract, num_tokens: int, ceilings: Ceilings) -> float:
    """Microseconds that the device needs at least."""
    traffic = contract.traffic(num_tokens)
    return 1e6 * ceilings.floor_s(traffic.bytes, traffic.flops, traffic.unit)


def rotating_inputs(contract: Contract, num_tokens: int, device: torch.device) -> list[Tensors]:
    """Copies of random inputs: enough that what one launch read has left the L2 cache when it is read again."""
    if device.type != "cuda":
        return [random_inputs(contract, num_tokens, device)]
    make_room(device)
    first = random_inputs(contract, num_tokens, device)
    size = sum(tensor.nbytes for tensor in tensors_in(first))
    count = math.ceil(2 * l2_bytes(device) / max(1, contract.traffic(num_tokens).bytes))
    count = min(max(count, LEAST_LAUNCHES), MOST_LAUNCHES, max(1, MOST_INPUT_BYTES // max(1, size)))
    return [first, *(map_tensors(first, torch.clone) for _ in range(count - 1))]


def make_room(device: torch.device) -> None:
    """Give memory that nobody uses back to the device, once half of it is taken.

    What a captured graph allocated stays reserved after its end, for graphs that will never come.
    """
    if 2 * torch.cuda.memory_reserved(device) > torch.cuda.get_device_properties(device).total_memory:
        torch.cuda.empty_cache()


def random_inputs(contract: Contract, num_tokens: int, device: torch.device) -> Tensors:
    """Inputs for a measurement: made on the device, except where they hold indices, which must be valid."""
    shapes = empty_inputs(contract, num_tokens)
    if not all(isinstance(value, torch.Tensor) and _may_be_anything(value.dtype) for value in shapes):
        return contract.sample_inputs(num_tokens, device, torch.Generator().manual_seed(0))
    generator = torch.Generator(device).manual_seed(0)
    made = tuple(_random_like(value, device, generator) for value in shapes)
    return contract.related(*made) if isinstance(contract, RelatedInputs) else made


def _replay_seconds(launch: Launcher, sets: Sequence[Tensors], device: torch.device, timing: Timing) -> list[float]:
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for call in range(timing.warmup):
            launch(*sets[call % len(sets)])
        with _no_waiting():
            launch(*sets[0])
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    # Without torch.cuda.graph, which collects garbage first: a tenth of a second for each of thousands of cases.
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            # Kept until the end of the capture, so that no launch writes where another one has just written.
            outputs: list[Any] = [launch(*inputs) for inputs in sets]
        finally:
            graph.capture_end()
    del outputs
    fill_cache = _cache_filler(device)
    graph.replay()
    seconds = []
    for _ in range(timing.rounds):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        fill_cache()
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3 / len(sets))
    return seconds


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Raises where the host waits for the device: a capture that fails on it leaves torch's allocator in disorder."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _cache_filler(device: torch.device) -> Callable[[], object]:
    """Reads, so that no written lines are left that a measured kernel would have to wait for."""
    other = torch.ones(max(1, 2 * l2_bytes(device) // 4), dtype=torch.int32, device=device)
    return lambda: other.max()


def _may_be_anything(dtype: torch.dtype) -> bool:
    return bool(dtype.is_floating_point or dtype == torch.int8)


def _random_like(value: torch.Tensor, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    if value.dtype == torch.int8:
        return made.random_(-127, 128, generator=generator)
    return made.copy_(torch.randn(value.shape, device=device, generator=generator))
