"""What every row op's tile program must do, in the interpreter."""

from __future__ import annotations

import torch

from parhelion.ops.check import check
from parhelion.ops.contract import Contract, as_tuple
from parhelion.ops.registry import op
from tests.ops.helion.awkward import generator, with_awkward_row
from tests.ops.row_oracle import expected_values, within_half_a_step

CPU = torch.device("cpu")

MAX_FLIPS = 1e-3
"""Of our own programs: they round nothing in between, so only the order of float32 sums moves a code, rarely."""


def assert_agrees(contract: Contract, num_tokens: int) -> None:
    """Outputs within the contract's bounds, almost no code flipped, every code as near to its value as can be."""
    launch = op(contract.name).provider("helion").launcher(contract)
    inputs = contract.sample_inputs(num_tokens, CPU, generator())
    for error in check(contract, launch, inputs):
        assert error.problem is None, error
        assert error.flips <= MAX_FLIPS, error
    if contract.outputs[0].scales is not None:
        want = expected_values(contract, inputs)
        codes, scales, *_ = launch(*(x.clone() for x in inputs))
        assert within_half_a_step(codes, scales, want)


def assert_awkward_row_agrees(contract: Contract, kind: str) -> None:
    """The second of three rows is awkward; it and its neighbours come out as the reference says."""
    x, *others = contract.sample_inputs(3, CPU, generator())
    inputs = (with_awkward_row(x, kind, 1), *others)
    for error in check(contract, op(contract.name).provider("helion").launcher(contract), inputs):
        assert error.problem is None, error


def assert_scales_are_powers_of_two(contract: Contract) -> None:
    """And every value divided by its scale stays within FP8's range, whatever its magnitude."""
    x, *others = contract.sample_inputs(9, CPU, generator())
    inputs = ((x.float() * 10.0 ** torch.arange(-4, 5)[:, None]).to(x.dtype), *others)
    want = expected_values(contract, inputs)
    codes, scales, *_ = op(contract.name).provider("helion").launcher(contract)(*(each.clone() for each in inputs))
    mantissas, _ = torch.frexp(scales)
    assert (mantissas == 0.5).all()
    each = scales.repeat_interleave(codes.shape[1] // scales.shape[1], dim=1)
    assert (want.abs() <= 448 * each * (1 + 1e-6)).all()
    assert codes.float().isfinite().all()


def assert_updates_in_place(contract: Contract) -> None:
    """The outputs that the contract calls mutated are those inputs themselves; the other inputs stay as they were."""
    inputs = contract.sample_inputs(3, CPU, generator())
    before = [x.clone() for x in inputs]
    outputs = as_tuple(op(contract.name).provider("helion").launcher(contract)(*inputs))
    for position, output in zip(contract.mutated, outputs[len(outputs) - len(contract.mutated) :], strict=True):
        assert output is inputs[position]
    for position, (after, was) in enumerate(zip(inputs, before, strict=True)):
        assert torch.equal(after, was) == (position not in contract.mutated)
