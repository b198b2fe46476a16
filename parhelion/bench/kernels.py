"""Every provider of an op beside the others and beside the device's limits, measured in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from parhelion.errors import first_line
from parhelion.ops.contract import Contract, Tensors
from parhelion.ops.kernel_timer import USUAL, Timing, floor_us, rotating_inputs, time_launcher
from parhelion.ops.provider import Provider, forget_shapes
from parhelion.ops.registry import op
from parhelion.platform.ceilings import measure_ceilings
from parhelion.platform.measure import Summary, scaled


@dataclass(frozen=True)
class KernelRow:
    """One provider of one contract at one M.

    Attributes:
        op, contract, num_tokens, provider: which.
        time_us: microseconds of a launch; None if it was not measured.
        floor_us: the contract's bytes or FLOPs, whichever takes longer, over the device's measured ceilings.
        of_floor: the floor over the median time: 1 is as fast as the device can be.
        vs_best_rival: the median time of the fastest other provider over this one's: above 1 this one is the fastest.
        problem: why it was not measured; None if it was.
    """

    op: str
    contract: str
    num_tokens: int
    provider: str
    time_us: Summary | None
    floor_us: float
    of_floor: float | None = None
    vs_best_rival: float | None = None
    problem: str | None = None


def measure_kernels(
    contracts: Sequence[Contract],
    num_tokens: Sequence[int],
    device: torch.device,
    providers: Sequence[str] = (),
    timing: Timing = USUAL,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[KernelRow]:
    """Measure the providers of contracts at every M.

    A provider that cannot serve, or fails, gets a row that says so, and the others are measured all the same.

    Args:
        providers: their names; none means all that the ops have.
        progress: told how many measurements are done, and how many there are.
    """
    wanted = [(contract, provider) for contract in contracts for provider in _providers(contract, providers)]
    total = len(wanted) * len(num_tokens)
    rows: list[KernelRow] = []
    for contract in contracts:
        for size in num_tokens:
            rows += measure_case(contract, size, _providers(contract, providers), device, timing)
            progress(len(rows), total)
    return rows


def with_rivals(rows: Sequence[KernelRow]) -> list[KernelRow]:
    """The rows of one contract and M with each compared to the fastest of the others."""
    compared = []
    for row in rows:
        others = [other.time_us.median for other in rows if other is not row and other.time_us is not None]
        if row.time_us is not None and others:
            row = replace(row, vs_best_rival=min(others) / row.time_us.median)
        compared.append(row)
    return compared


def _providers(contract: Contract, names: Sequence[str]) -> list[Provider]:
    known = op(contract.name)
    return [known.provider(name) for name in names] if names else list(known.providers)


def measure_case(
    contract: Contract,
    num_tokens: int,
    providers: Sequence[Provider],
    device: torch.device,
    timing: Timing = USUAL,
) -> list[KernelRow]:
    """Providers of one contract at one M, on the same inputs; a failure is a row that says so."""
    floor = floor_us(contract, num_tokens, measure_ceilings(device))
    sets = rotating_inputs(contract, num_tokens, device)
    return with_rivals([_measure(contract, num_tokens, each, device, floor, sets, timing) for each in providers])


def _measure(
    contract: Contract,
    num_tokens: int,
    provider: Provider,
    device: torch.device,
    floor: float,
    sets: Sequence[Tensors],
    timing: Timing,
) -> KernelRow:
    row = KernelRow(contract.name, contract.key(), num_tokens, provider.name, None, floor)
    problem = provider.why_not(device) or provider.refuses(contract)
    if problem is not None:
        return replace(row, problem=problem)
    forget_shapes(provider)
    try:
        seconds = time_launcher(provider.launcher(contract), sets, device, timing)
    # A provider may fail in any way; the table says how.
    except Exception as error:
        return replace(row, problem=first_line(error))
    times = scaled(seconds, 1e6)
    return replace(row, time_us=times, of_floor=floor / times.median if times.median else None)
