"""Every provider beside the contract in float64, on the device: fresh random inputs, outputs full of NaN beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from parhelion.bench.kernels import first_line, forget_shapes
from parhelion.ops.check import OutputError, compare
from parhelion.ops.contract import Contract, Tensors, as_tuple
from parhelion.ops.inputs import map_tensors
from parhelion.ops.provider import Provider

Cases = Sequence[tuple[int, Sequence[Provider]]]
"""Sizes of M, each with the providers that are tried at it."""

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


def check_contract(contract: Contract, cases: Cases, device: torch.device, seed: int) -> list[CorrectnessRow]:
    """Try providers at sizes of M, on inputs that are new at each size; a failure ends up in its provider's row."""
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, CorrectnessRow] = {}
    for size, providers in cases:
        inputs = contract.sample_inputs(size, device, generator)
        narrow = as_tuple(contract.reference(*inputs))
        expected = as_tuple(contract.reference(*map_tensors(inputs, _doubled)))
        for provider in providers:
            row = rows.get(provider.name, CorrectnessRow(contract.name, contract.key(), provider.name, ()))
            why_not = provider.why_not(device) or provider.refuses(contract)
            if why_not is not None:
                rows[provider.name] = replace(row, skipped=why_not)
                continue
            rows[provider.name] = _tried(row, contract, provider, size, inputs, narrow, expected, device)
    return list(rows.values())


def _tried(
    row: CorrectnessRow,
    contract: Contract,
    provider: Provider,
    num_tokens: int,
    inputs: Tensors,
    narrow: Tensors,
    expected: Tensors,
    device: torch.device,
) -> CorrectnessRow:
    """The row after one more launch, whose outputs are compared with those that the contract gives in float64."""
    row = replace(row, num_tokens=(*row.num_tokens, num_tokens))
    forget_shapes(provider)
    try:
        launch = provider.launcher(contract)
        own = map_tensors(inputs, torch.clone)
        poison_free_memory(narrow, device)
        actual = as_tuple(launch(*own))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        errors = tuple(compare(contract, _widened(actual, narrow, expected), expected))
    # A provider may fail in any way; the row says how.
    except Exception as error:
        return replace(row, problems=(*row.problems, f"M = {num_tokens}: {first_line(error)}"))
    problems = [f"M = {num_tokens}: {each.output} {each.problem}" for each in errors if each.problem is not None]
    return replace(row, outputs=_worse(row.outputs, errors), problems=(*row.problems, *problems))


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
