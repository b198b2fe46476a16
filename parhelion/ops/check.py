"""Whether a launcher computes its contract: outputs beside the reference's, within the contract's own bounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from parhelion.ops.contract import Contract, Launcher, Output, Tensors, as_tuple

ANY_STEPS = 1.0
"""As ``max_flips`` of codes: of sums, whose error is a share of their row's and not of their own, so that those near
zero may be many steps away. ``relative`` bounds the codes together instead.
"""

_GRID_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8)


@dataclass(frozen=True)
class OutputError:
    """How far one output is from the reference's.

    Attributes:
        output: its name.
        relative: ||out - reference|| / ||reference|| over the elements that are finite in both (of codes: dequantized).
        flips: share of the codes that are one step of their grid away, or of the integers that differ; 0 for other
            outputs.
        problem: what breaks the contract, in words; None if nothing does.
    """

    output: str
    relative: float
    flips: float
    problem: str | None


def check(contract: Contract, launch: Launcher, inputs: Tensors) -> list[OutputError]:
    """Run a launcher on copies of the inputs and compare every output with the reference's."""
    expected = as_tuple(contract.reference(*inputs))
    actual = as_tuple(launch(*(x.clone() if isinstance(x, torch.Tensor) else x for x in inputs)))
    return compare(contract, actual, expected)


def compare(contract: Contract, actual: Tensors, expected: Tensors) -> list[OutputError]:
    """Outputs of a launcher beside those of the reference; see ``Output`` for what is compared and how."""
    errors = []
    for output, got, want in zip(contract.outputs, actual, expected, strict=True):
        if got.shape != want.shape or got.dtype != want.dtype:
            problem = f"is {got.dtype} {tuple(got.shape)}, not {want.dtype} {tuple(want.shape)}"
            errors.append(OutputError(output.name, float("inf"), 0.0, problem))
        elif got.dtype in _GRID_DTYPES:
            errors.append(_compare_codes(output, got, want))
        else:
            errors.append(_compare_values(output, got, want))
    return errors


def _compare_values(output: Output, got: torch.Tensor, want: torch.Tensor) -> OutputError:
    if not want.is_floating_point():
        return _compare_integers(output, got, want)
    got, want = got.double(), want.double()
    relative, problem = _relative(got, want)
    if problem is None and not relative <= output.relative:
        problem = f"is off by {relative:.3g} (relative), above {output.relative:g}"
    return OutputError(output.name, relative, 0.0, problem)


def _compare_integers(output: Output, got: torch.Tensor, want: torch.Tensor) -> OutputError:
    """Indices: one that differs may be far away, so they are counted."""
    flips = float((got != want).double().mean()) if want.numel() else 0.0
    problem = None
    if flips > output.max_flips:
        problem = f"differs in {flips:.3g} of its integers, above {output.max_flips:g}"
    return OutputError(output.name, 0.0, flips, problem)


def _compare_codes(output: Output, got: torch.Tensor, want: torch.Tensor) -> OutputError:
    finite = torch.isfinite(got.float()) & torch.isfinite(want.float())
    relative, problem = _relative(got.double(), want.double())
    steps = (ordinals(got) - ordinals(want)).abs()[finite]
    flips = float((steps == 1).double().mean()) if steps.numel() else 0.0
    worst = int(steps.max()) if steps.numel() else 0
    if output.max_flips == ANY_STEPS:
        if problem is None and not relative <= output.relative:
            problem = f"is off by {relative:.3g} (relative), above {output.relative:g}"
        return OutputError(output.name, relative, flips, problem)
    if problem is None and worst > 1:
        problem = f"has a code that is {worst} steps away"
    if problem is None and flips > output.max_flips:
        problem = f"has {flips:.3g} of its codes one step away, above {output.max_flips:g}"
    return OutputError(output.name, relative, flips, problem)


def ordinals(codes: torch.Tensor) -> torch.Tensor:
    """Codes as int32 numbers in the order of their values, neighbours one apart; both zeros are 0."""
    if codes.dtype == torch.int8:
        return codes.int()
    bits = codes.view(torch.uint8).int()
    return torch.where(bits >= 128, 128 - bits, bits)


def _relative(got: torch.Tensor, want: torch.Tensor) -> tuple[float, str | None]:
    """The relative error over the finite elements; a problem where the two disagree on what is NaN or infinite."""
    same_nan = torch.equal(got.isnan(), want.isnan())
    infinite = want.isinf() | got.isinf()
    same_inf = torch.equal(got[infinite], want[infinite])
    finite = got.isfinite() & want.isfinite()
    if not finite.all():
        # Only then: picking elements takes several times the memory of the output.
        got, want = got[finite], want[finite]
    error = torch.linalg.vector_norm(got - want)
    size = torch.linalg.vector_norm(want)
    relative = 0.0 if error == 0 else float(error / size) if size > 0 else float("inf")
    if not same_nan:
        return relative, "is NaN elsewhere than the reference"
    if not same_inf:
        return relative, "is infinite elsewhere than the reference"
    return relative, None
