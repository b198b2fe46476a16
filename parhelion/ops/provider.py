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
        """What computes the contract from all its inputs, as checks and benchmarks call it."""
        ...

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        """What serves: the contract's parameters are packed and fixed once, at load; it takes the remaining inputs."""
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
        return fixed(self.launcher(contract), weights)


class ReferenceProvider(BaseProvider):
    """The contract's own reference: any device, any shape, one torch kernel after the other."""

    name = "reference"

    def launcher(self, contract: Contract) -> Launcher:
        if not contract.mutated:
            return contract.reference
        return lambda *inputs: write_back(contract, inputs, contract.reference(*inputs))


class InductorProvider(BaseProvider):
    """The reference through ``torch.compile`` with combo kernels.

    A launcher compiles at the first call of each shape, for the best time that this shape can have. Serving meets every
    M, and ``torch.compile`` gives up after eight shapes of one function: so what is bound compiles for the first M that
    it meets, and for the second one as an M that may be any from then on. Static dimensions stay constants.
    """

    name = "inductor"

    def why_not(self, device: torch.device) -> str | None:
        from parhelion.platform.compiler import cpp_compiler

        if device.type == "cpu":
            return None if cpp_compiler() else "no C++ compiler was found: install g++ or clang++"
        return missing_package("triton")

    def function(self, contract: Contract) -> Launcher:
        """What is compiled; what it writes in place is compiled too, so that it costs no copy of its own."""
        return ReferenceProvider().launcher(contract)

    def launcher(self, contract: Contract) -> Launcher:
        return self._compiled(contract, dynamic=False)

    def bind(self, contract: Contract, *weights: Any) -> Launcher:
        return fixed(self._compiled(contract, dynamic=None), weights)

    def _compiled(self, contract: Contract, dynamic: bool | None) -> Launcher:
        compiled: Launcher = torch.compile(
            self.function(contract),
            fullgraph=True,
            dynamic=dynamic,
            options={"combo_kernels": True, "benchmark_combo_kernel": True},
        )
        return compiled


def forget_shapes(provider: Provider) -> None:
    """Before another shape is measured: torch.compile keeps only so many shapes of one function and refuses more."""
    if provider.name == "inductor":
        torch.compiler.reset()


def packs(provider: Provider) -> bool:
    """Whether a provider does more to parameters than to pass them on with every call."""
    return getattr(type(provider), "bind", None) is not BaseProvider.bind


def fixed(launch: Launcher, weights: tuple[Any, ...]) -> Launcher:
    """The launcher with its last inputs given."""
    return (lambda *inputs: launch(*inputs, *weights)) if weights else launch


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
