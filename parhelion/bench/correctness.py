"""Every provider beside the contract in float64, on the device: fresh random inputs, outputs full of NaN beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from parhelion.bench.kernels import first_line, forget_shapes
from parhelion.ops.check import OutputError, compare
from parhelion.ops.contract import Contract, Launcher, Tensors, as_tuple
from parhelion.ops.inputs import map_tensors
from parhelion.ops.provider import Provider

_NARROW = (torch.bfloat16, torch.float16, torch.float32)

_WORKSPACES = tuple(1 << power for power in range(9, 27, 2))
"""Bytes of the free blocks, beside those of the outputs' sizes, that a launcher may be given for its scratch memory."""


@dataclass(frozen=True)
class CorrectnessRow:
    """One provider of one contract.

    Attributes:
        op, contract, provider: which.
        num_tokens: the sizes of M that were tried.
        outputs: for each output, the largest error and the largest share of flipped codes of all tries.
        problems: what broke the contract, or went wrong otherwise; empty if all is well.
        skipped: why nothing was tried; None if something was.
    """

    op: str
    contract: str
    provider: str
    num_tokens: tuple[int, ...]
    outputs: tuple[OutputError, ...] = ()
    problems: tuple[str, ...] = ()
    skipped: str | None = None

    @property
    def passed(self) -> bool:
        return self.skipped is None and not self.problems


def check_provider(
    contract: Contract, provider: Provider, num_tokens: Sequence[int], device: torch.device, seed: int
) -> CorrectnessRow:
    """Try a provider at every M with inputs of its own; a failure ends up in the row."""
    row = CorrectnessRow(contract.name, contract.key(), provider.name, tuple(num_tokens))
    why_not = provider.why_not(device) or provider.refuses(contract)
    if why_not is not None:
        return replace(row, skipped=why_not)
    generator = torch.Generator().manual_seed(seed)
    worst: tuple[OutputError, ...] = ()
    problems: list[str] = []
    forget_shapes(provider)
    for size in num_tokens:
        try:
            errors = check_once(contract, provider.launcher(contract), size, device, generator)
        # A provider may fail in any way; the row says how.
        except Exception as error:
            problems.append(f"M = {size}: {first_line(error)}")
            continue
        problems += [f"M = {size}: {error.output} {error.problem}" for error in errors if error.problem is not None]
        worst = _worse(worst, errors)
    return replace(row, outputs=worst, problems=tuple(problems))


def check_once(
    contract: Contract, launch: Launcher, num_tokens: int, device: torch.device, generator: torch.Generator
) -> tuple[OutputError, ...]:
    """One launch on fresh inputs, its outputs beside those that the contract gives in float64."""
    inputs = contract.sample_inputs(num_tokens, device, generator)
    narrow = as_tuple(contract.reference(*inputs))
    expected = as_tuple(contract.reference(*map_tensors(inputs, _doubled)))
    own = map_tensors(inputs, torch.clone)
    poison_free_memory(narrow, device)
    actual = as_tuple(launch(*own))
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return tuple(compare(contract, _widened(actual, narrow, expected), expected))


def poison_free_memory(outputs: Tensors, device: torch.device) -> None:
    """Leave blocks of NaN bytes where the allocator finds room for these outputs, and for scratch memory, next."""
    sizes = [max(1, output.nbytes) for output in outputs]
    held = [torch.full((size,), 0xFF, dtype=torch.uint8, device=device) for size in (*sizes, *sizes, *_WORKSPACES)]
    del held


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x.double() if x.dtype in _NARROW else x


def _widened(actual: Tensors, narrow: Tensors, expected: Tensors) -> Tensors:
    """The outputs in float64 where the oracle is, provided that they have the dtype that they should have."""
    return tuple(
        got.double() if want.dtype == torch.float64 and got.dtype == plain.dtype else got
        for got, plain, want in zip(actual, narrow, expected, strict=True)
    )


def _worse(known: tuple[OutputError, ...], new: tuple[OutputError, ...]) -> tuple[OutputError, ...]:
    if not known:
        return new
    return tuple(
        OutputError(a.output, max(a.relative, b.relative), max(a.flips, b.flips), a.problem or b.problem)
        for a, b in zip(known, new, strict=True)
    )
