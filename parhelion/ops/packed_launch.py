"""Launching a pack's binaries from Python in a few microseconds.

Each binary's recipe becomes one Python function (see ``packed_source``) when the pack is loaded, so that a launch
interprets nothing. Its arguments go through memory that belongs to the binary: one thread, the engine's, launches.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec
import torch

from parhelion.errors import PackError
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.packed_kinds import key_of_kind, kind_of
from parhelion.ops.packed_source import FORMATS, evaluate, launch_source
from parhelion.packs.format import Binary
from parhelion.platform.driver import Function

Key = tuple[Any, ...]
"""A kernel's name, its config, and of each argument of ``run`` (dtype, dimensions) for a tensor, else the value."""

_SLOT_BYTES = 8
_NUM_SCRATCH = 2
"""Pointers that Triton puts behind a binary's arguments: global scratch and profile scratch; null here."""

_SHOWN = 3


class PackedAssumptionError(PackError):
    """A binary was asked to compute what it was not compiled for.

    Attributes:
        kernel: the tile program.
        expression: what does not hold, as its recipe spells it.
        value: of the expression.
    """

    def __init__(self, kernel: str, expression: str, value: object, limit: str) -> None:
        super().__init__(
            f"{kernel}: {expression} is {value}, and its binary was compiled for {limit}; "
            "build the pack for this shape, or choose another provider with --kernels"
        )
        self.kernel = kernel
        self.expression = expression
        self.value = value


class PackMissError(PackError):
    """A pack holds no binary for a launch.

    Attributes:
        kernel: the tile program.
    """

    def __init__(self, message: str, kernel: str) -> None:
        super().__init__(message)
        self.kernel = kernel


class PackedKernel:
    """A loaded binary that is launched with the arguments that an op's ``launch`` hands to ``run``.

    Tensors must be on the function's device and of the kinds that the binary names: ``PackedRunner`` sees to the
    kinds. Not for two threads at once.

    Args:
        binary: what the pack says about it.
        function: its code, loaded.
        num_processors: of the device.

    Attributes:
        binary: as given.
        key: see ``Key``.
        source: the Python that launches it.
        launch: that, compiled; what calling this object calls.

    Raises:
        PackError: the recipe cannot be used, or the binary wants scratch memory.
    """

    def __init__(self, binary: Binary, function: Function, num_processors: int) -> None:
        if binary.scratch_bytes:
            raise PackError(
                f"{binary.kernel}: its binary {binary.file} wants {binary.scratch_bytes} bytes of scratch memory a "
                "program, and only binaries that want none can be launched; build the pack with another config"
            )
        written = launch_source(binary, num_processors)
        self.binary = binary
        self.key = key_of(binary)
        self.source = written.text
        self._written = written
        # Every argument has a slot of eight bytes; the scratch pointers behind them stay null.
        num_slots = len(binary.recipe.arguments) + _NUM_SCRATCH
        slots = (ctypes.c_uint64 * num_slots)()
        address = ctypes.addressof(slots)
        parameters = (ctypes.c_void_p * num_slots)(*(address + _SLOT_BYTES * index for index in range(num_slots)))
        names = {
            "__pack": struct.Struct(written.layout).pack_into,
            "__slots": slots,
            "__launch": function.launcher(parameters, binary.num_warps, binary.programmatic),
            "__refuse": self._refuse,
            "__refuse_values": self._refuse_values,
            "__Unpackable": (struct.error, OverflowError),
        }
        self.launch: Callable[..., None] = written.function(names)

    def __call__(self, *arguments: Any) -> None:
        """Launch it on the current stream, or do nothing if its grid is empty.

        Raises:
            PackedAssumptionError: the binary was not compiled for these arguments.
            DriverError: the driver refused the launch.
        """
        self.launch(*arguments)

    def _refuse(self, *arguments: Any) -> None:
        """Raise for the first assumption that does not hold."""
        for assumption in self._written.assumptions:
            value = self._value(assumption.expression, arguments)
            if not assumption.holds(value):
                raise PackedAssumptionError(self.binary.kernel, assumption.expression, value, assumption.words())
        raise AssertionError(f"{self.binary.kernel} was refused though all that it assumes holds")

    def _refuse_values(self, *arguments: Any) -> None:
        """Raise for the first value that the binary's parameters cannot hold."""
        for argument in self.binary.recipe.arguments:
            value = self._value(argument.value, arguments)
            try:
                struct.pack(FORMATS[argument.type], value)
            except (struct.error, OverflowError):
                raise PackedAssumptionError(self.binary.kernel, argument.value, value, argument.type) from None
        grid = tuple(self._value(text, arguments) for text in self.binary.recipe.grid)
        limit = "at least 0 and below 2**32"
        raise PackedAssumptionError(self.binary.kernel, f"grid ({', '.join(self.binary.recipe.grid)})", grid, limit)

    def _value(self, text: str, arguments: tuple[Any, ...]) -> Any:
        return evaluate(text, dict(zip(self.binary.recipe.parameters, arguments, strict=True)), self._written)


class PackedRunner:
    """A runner (see ``launching``) that launches binaries of a pack and never compiles.

    Args:
        kernels: by ``PackedKernel.key``.
        target: what the pack was built for, which launches with configs of their own for it read.
    """

    def __init__(self, kernels: Mapping[Key, PackedKernel], target: str | None = None) -> None:
        self.target = target
        self._kernels: dict[Key, PackedKernel] = {}
        self._launches: dict[Key, Callable[..., None]] = {}
        for key, kernel in kernels.items():
            self._put(key, kernel)

    @classmethod
    def of(cls, kernels: Iterable[PackedKernel], target: str | None = None) -> PackedRunner:
        """The runner of these kernels.

        Raises:
            PackError: two of them serve the same arguments.
        """
        runner = cls({}, target)
        for kernel in kernels:
            runner.add(kernel)
        return runner

    def add(self, kernel: PackedKernel) -> None:
        """One more kernel.

        Raises:
            PackError: another one serves the same arguments.
        """
        other = self._kernels.get(kernel.key, kernel)
        if other is not kernel:
            files = f"{other.binary.file} and {kernel.binary.file}"
            raise PackError(f"{kernel.binary.kernel} has two binaries for the same arguments, {files}: drop one")
        self._put(kernel.key, kernel)

    def _put(self, key: Key, kernel: PackedKernel) -> None:
        self._kernels[key] = kernel
        self._launches[key] = kernel.launch

    def __call__(self, kernel: str, config: KernelConfig, *arguments: Any) -> None:
        """Launch the tile program; see ``PackedKernel.__call__``.

        Raises:
            PackMissError: the pack does not hold it with this config for arguments of these kinds.
        """
        tensor = torch.Tensor
        key = (kernel, config, *[(a.dtype, a.ndim) if isinstance(a, tensor) else a for a in arguments])
        launch = self._launches.get(key)
        if launch is None:
            raise self._missing(kernel, config, arguments)
        launch(*arguments)

    def _missing(self, kernel: str, config: KernelConfig, arguments: tuple[Any, ...]) -> PackMissError:
        own = [each for key, each in self._kernels.items() if key[0] == kernel]
        alike = [each for each in own if each.key[1] == config]
        if alike:
            there = "with this config it has " + _some(f"({', '.join(each.binary.kinds)})" for each in alike)
        elif own:
            there = "it has the configs " + _some(str(each.key[1]) for each in own)
        else:
            there = "it has the kernels " + (_some(str(key[0]) for key in self._kernels) or "none")
        kinds = ", ".join(map(kind_of, arguments))
        return PackMissError(
            f"the pack holds no binary of {kernel} with {config} for ({kinds}); {there}; "
            "build the pack for this shape, or choose another provider with --kernels",
            kernel,
        )


def key_of(binary: Binary) -> Key:
    """Under what a runner finds a binary.

    Raises:
        PackError: its config or one of its kinds means nothing here.
    """
    try:
        config = msgspec.convert(binary.config, KernelConfig)
    except msgspec.ValidationError as error:
        raise PackError(f"{binary.kernel}: its config cannot be read ({error}); build the pack again") from None
    return (binary.kernel, config, *map(key_of_kind, binary.kinds))


def _some(words: Iterable[str]) -> str:
    distinct = list(dict.fromkeys(words))
    more = f" and {len(distinct) - _SHOWN} more" if len(distinct) > _SHOWN else ""
    return ", ".join(distinct[:_SHOWN]) + more
