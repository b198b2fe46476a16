"""Who can compute an op: thin adapters, each with a probe that says in words why it cannot serve.

``reference``, ``inductor`` and ``helion`` are the same for every op and live here and in ``helion_provider``; what a
vendor's library offers stands in the op's own ``providers.py``.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from parhelion.ops.contract import Contract, Launcher, as_tuple


@dataclass(frozen=True)
class Availability:
    """Whether a provider can serve here, in words that ``parhelion doctor`` prints.

    Attributes:
        op, provider: which.
        available: it can serve on this machine.
        reason: what it offers or, if it cannot serve, why not.
    """

    op: str
    provider: str
    available: bool
    reason: str


class Provider(Protocol):
    """One way to compute an op.

    Attributes:
        name: as users write it in ``--kernels op=name``.
    """

    @property
    def name(self) -> str: ...

    def why_not(self, device: torch.device) -> str | None:
        """None if it can serve on this device at all; else why not."""
        ...

    def refuses(self, contract: Contract) -> str | None:
        """None if it can serve these static dimensions; else why not."""
        ...

    def launcher(self, contract: Contract) -> Launcher:
        """What computes the contract; made once, at load."""
        ...

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        """The launcher with the contract's parameters packed and fixed; it takes the remaining inputs."""
        ...


class BaseProvider:
    """Defaults for providers: serves every device and every shape, and packs nothing."""

    name: str

    def why_not(self, device: torch.device) -> str | None:
        return None

    def refuses(self, contract: Contract) -> str | None:
        return None

    def launcher(self, contract: Contract) -> Launcher:
        raise AssertionError(f"{type(self).__name__} defines no launcher")

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        launch = self.launcher(contract)
        return lambda *inputs: launch(*inputs, *weights)


class ReferenceProvider(BaseProvider):
    """The contract's own reference: any device, any shape, one torch kernel after the other."""

    name = "reference"

    def launcher(self, contract: Contract) -> Launcher:
        if not contract.mutated:
            return contract.reference
        return lambda *inputs: write_back(contract, inputs, contract.reference(*inputs))


class InductorProvider(BaseProvider):
    """The reference through ``torch.compile`` with combo kernels; compiles at the first call of each shape."""

    name = "inductor"

    def why_not(self, device: torch.device) -> str | None:
        from parhelion.platform.compiler import cpp_compiler

        if device.type == "cpu":
            return None if cpp_compiler() else "no C++ compiler was found: install g++ or clang++"
        return missing_package("triton")

    def launcher(self, contract: Contract) -> Launcher:
        # What is written in place is compiled too, so that it costs no copy of its own.
        compiled: Launcher = torch.compile(
            ReferenceProvider().launcher(contract),
            fullgraph=True,
            dynamic=False,
            options={"combo_kernels": True, "benchmark_combo_kernel": True},
        )
        return compiled


def write_back(contract: Contract, inputs: tuple[Any, ...], result: Any) -> Any:
    """Copy the last outputs into the inputs that the contract says are written in place, and return those instead."""
    outputs = list(as_tuple(result))
    first = len(outputs) - len(contract.mutated)
    for offset, position in enumerate(contract.mutated):
        outputs[first + offset] = inputs[position].copy_(outputs[first + offset])
    return tuple(outputs) if len(outputs) > 1 else outputs[0]


def missing_package(*names: str) -> str | None:
    """None if all these packages can be imported; else which one is missing, without importing any."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return f"the package {absent[0]} is not installed" if absent else None


def needs_cuda(device: torch.device, least_capability: tuple[int, int] = (0, 0)) -> str | None:
    """None on an NVIDIA device of at least that compute capability; else why not."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"it needs an NVIDIA GPU, and this is {device.type}"
    found = torch.cuda.get_device_capability(device)
    if found < least_capability:
        least = ".".join(map(str, least_capability))
        return f"it needs compute capability {least}, and this GPU has {found[0]}.{found[1]}"
    return None
