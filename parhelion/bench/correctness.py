"""Every provider beside the contract in float64, on the device: fresh random inputs, outputs full of NaN beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from parhelion.errors import first_line
from parhelion.ops.check import OutputError
from parhelion.ops.contract import Contract
from parhelion.ops.oracle import Oracle
from parhelion.ops.provider import Provider, forget_shapes

Cases = Sequence[tuple[int, Sequence[Provider]]]
"""Sizes of M, each with the providers that are tried at it."""


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
        oracle = Oracle(contract, inputs)
        for provider in providers:
            row = rows.get(provider.name, CorrectnessRow(contract.name, contract.key(), provider.name, ()))
            why_not = provider.why_not(device) or provider.refuses(contract)
            if why_not is not None:
                rows[provider.name] = replace(row, skipped=why_not)
                continue
            rows[provider.name] = _tried(row, contract, provider, size, oracle)
    return list(rows.values())


def _tried(
    row: CorrectnessRow,
    contract: Contract,
    provider: Provider,
    num_tokens: int,
    oracle: Oracle,
) -> CorrectnessRow:
    """The row after one more launch, whose outputs are compared with those that the contract gives in float64."""
    row = replace(row, num_tokens=(*row.num_tokens, num_tokens))
    forget_shapes(provider)
    try:
        errors = oracle.compare(provider.launcher(contract))
    # A provider may fail in any way; the row says how.
    except Exception as error:
        return replace(row, problems=(*row.problems, f"M = {num_tokens}: {first_line(error)}"))
    problems = [f"M = {num_tokens}: {each.output} {each.problem}" for each in errors if each.problem is not None]
    return replace(row, outputs=_worse(row.outputs, errors), problems=(*row.problems, *problems))


def _worse(known: tuple[OutputError, ...], new: tuple[OutputError, ...]) -> tuple[OutputError, ...]:
    if not known:
        return new
    return tuple(
        OutputError(a.output, max(a.relative, b.relative), max(a.flips, b.flips), a.problem or b.problem)
        for a, b in zip(known, new, strict=True)
    )
