"""What an op promises: declared once, and everything else (tests, benchmarks, floors, reports) is derived from it.

A contract is a frozen dataclass whose fields are the op's static dimensions, so an instance such as
``RmsNorm(hidden_size=4096)`` is a hashable key. The one dynamic dimension is the number of tokens, M.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import torch

Tensors = tuple[torch.Tensor, ...]

Launcher = Callable[..., Any]
"""What a contract resolves to: takes the contract's inputs, returns its output, or a tuple where there are several."""

MathUnit = Literal["float32", "bfloat16", "float8", "int8"]
"""Which of a device's arithmetic units does an op's FLOPs, for the choice of the ceiling."""


@dataclass(frozen=True)
class Traffic:
    """The least work an op can be done with; over the device's ceilings it gives the op's floor.

    Attributes:
        bytes: each input read once, each output written once.
        flops: multiplications and additions.
        unit: who does the flops.
    """

    bytes: int
    flops: int
    unit: MathUnit = "float32"


@dataclass(frozen=True)
class Output:
    """One output of a contract and how far a provider's may be from the reference's.

    Attributes:
        name: as in the docstring of the contract.
        relative: bound of ||out - reference|| / ||reference|| over the finite elements.
        scales: for quantized codes, the position of the output that holds their scales; codes are compared by steps on
            their own grid: none may be more than one step away, and ``max_flips`` says how many may be one.
        max_flips: share of the codes that may differ by one step; of integers, such as indices, the share that may
            differ at all.
    """

    name: str
    relative: float
    scales: int | None = None
    max_flips: float = 0.0


@dataclass(frozen=True)
class Contract(ABC):
    """Base of all contracts. Subclasses add the static dimensions as fields.

    Attributes:
        name: the op's name in the field, also its folder under ``parhelion/ops``.
        outputs: in the order in which launchers return them.
        mutated: positions of the inputs that a launcher may write to (a residual, a KV cache). The reference never
            writes to its inputs: it returns the new value as an output.
        num_weights: how many of the last inputs are parameters of the model, fixed at load.
        instead: what serves where the tile program cannot be built (a target without the type, too little shared
            memory): the name of another op or provider, as the compile matrix prints it.
        free: static dimensions on which no tile program depends: what was built for one size serves all.
    """

    name: ClassVar[str]
    outputs: ClassVar[tuple[Output, ...]]
    mutated: ClassVar[tuple[int, ...]] = ()
    num_weights: ClassVar[int] = 0
    instead: ClassVar[str] = "reference"
    free: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def sample_inputs(self, num_tokens: int, device: torch.device, generator: torch.Generator) -> Tensors:
        """Fresh random inputs for M = ``num_tokens``.

        Args:
            generator: on the CPU; the same seed gives the same numbers each time, on a GPU others than on a CPU.
        """

    @abstractmethod
    def reference(self, *inputs: Any, **unused: Any) -> Any:
        """The oracle, in plain PyTorch and float32 or wider; returns outputs in the dtypes that launchers return.

        float64 inputs are computed in float64 (and returned so, unless the output is a code), which makes a second,
        stricter oracle out of the same lines.
        """

    @abstractmethod
    def traffic(self, num_tokens: int) -> Traffic:
        """Bytes and FLOPs for M = ``num_tokens``."""

    def key(self) -> str:
        """The op and its static dimensions as one line, such as ``rms_norm(hidden_size=4096, dtype=bfloat16)``."""
        dims = ", ".join(f"{f.name}={_spell(getattr(self, f.name))}" for f in fields(self))
        return f"{self.name}({dims})"


def program_key(contract: type[Contract], key: str) -> str:
    """A contract's ``key()`` without the dimensions on which no tile program depends."""
    for name in contract.free:
        key = re.sub(rf"{name}=[^,)]*(, )?", "", key)
    return key


def as_tuple(result: torch.Tensor | Tensors) -> Tensors:
    """A launcher's or a reference's result as a tuple of outputs."""
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def wide(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype that references compute in: float64 if it is that already, else float32."""
    return x if x.dtype == torch.float64 else x.float()


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in the dtype that a launcher returns, unless it is float64, which stays as the stricter oracle."""
    return x if x.dtype == torch.float64 else x.to(dtype)


def randn(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, generator: torch.Generator, scale: float = 1.0
) -> torch.Tensor:
    """Normal random numbers; on a GPU made there, from a seed that the generator gives: a table may take gigabytes."""
    if device.type == "cuda":
        seed = int(torch.randint(1 << 62, (1,), generator=generator))
        generator = torch.Generator(device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=device) * scale).to(dtype)


def _spell(value: object) -> str:
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else str(value)
