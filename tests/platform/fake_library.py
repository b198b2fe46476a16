"""Stand-ins for the GPUs' drivers: C functions that write down what really reaches them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

from parhelion.platform.driver_cuda import LaunchConfig

MODULE = 0x7F0000000010
FUNCTION = 0x7F0000000020
STREAM = 0x7F0000000030
"""Handles wider than C's int, as real ones are."""

P, I = ctypes.c_void_p, ctypes.c_uint


@dataclass(frozen=True)
class Launched:
    """One launch: the first eight bytes of each parameter as they are at that moment."""

    function: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    stream: int | None
    parameters: tuple[bytes, ...]
    attributes: tuple[tuple[int, int], ...] = ()


class FakeLibrary:
    """What both drivers share.

    Attributes:
        num_parameters: how many a launch has; the driver's binaries know, and this one must be told.
        fails: the status of calls that fail, by name.
        calls: names of the calls so far, with what matters of their arguments.
        launched: the launches so far.
    """

    def __init__(self, num_parameters: int = 0) -> None:
        self.num_parameters = num_parameters
        self.fails: dict[str, int] = {}
        self.calls: list[tuple[object, ...]] = []
        self.launched: list[Launched] = []
        self._kept: list[object] = []

    def c_function(self, name: str, function: Callable[..., None], *types: type) -> Callable[..., int]:
        """A C function that ctypes calls as it does one of a library: knowing nothing of its parameters."""

        def call(*arguments: object) -> int:
            status = self.fails.get(name, 0)
            if not status:
                function(*arguments)
            return status

        callback = ctypes.CFUNCTYPE(ctypes.c_int, *types)(call)
        self._kept.append(callback)
        address = ctypes.cast(callback, ctypes.c_void_p).value
        assert address is not None
        return ctypes.CFUNCTYPE(ctypes.c_int)(address)

    def loads(self, module: int, binary: int) -> None:
        self.calls.append(("load", ctypes.string_at(binary, 4)))
        _write(module, MODULE)

    def gets(self, function: int, module: int, symbol: int) -> None:
        self.calls.append(("get", module, ctypes.string_at(symbol)))
        _write(function, FUNCTION)

    def says(self, status: int, words: int) -> None:
        self.message = ctypes.create_string_buffer(b"words of the driver")
        _write(words, ctypes.addressof(self.message))

    def read_parameters(self, parameters: int) -> tuple[bytes, ...]:
        addresses = (ctypes.c_void_p * self.num_parameters).from_address(parameters)
        return tuple(ctypes.string_at(address, 8) for address in addresses)


class FakeCuda(FakeLibrary):
    """libcuda."""

    def __init__(self, num_parameters: int = 0) -> None:
        super().__init__(num_parameters)
        self.cuModuleLoadData = self.c_function("cuModuleLoadData", self.loads, P, P)
        self.cuModuleGetFunction = self.c_function("cuModuleGetFunction", self.gets, P, P, P)
        self.cuFuncSetAttribute = self.c_function("cuFuncSetAttribute", self.sets, P, I, I)
        self.cuLaunchKernelEx = self.c_function("cuLaunchKernelEx", self.launches, P, P, P, P)
        self.cuGetErrorString = self.c_function("cuGetErrorString", self.says, I, P)

    def sets(self, function: int, attribute: int, value: int) -> None:
        self.calls.append(("set", function, attribute, value))

    def launches(self, config: int, function: int, parameters: int, extra: int | None) -> None:
        assert extra is None
        c = LaunchConfig.from_address(config)
        attributes = tuple((c.attributes[i].id, c.attributes[i].value) for i in range(c.num_attributes))
        values = self.read_parameters(parameters)
        self.launched.append(
            Launched(function, tuple(c.grid), tuple(c.block), c.shared_bytes, c.stream, values, attributes)
        )


class FakeHip(FakeLibrary):
    """libamdhip64."""

    def __init__(self, num_parameters: int = 0) -> None:
        super().__init__(num_parameters)
        self.hipModuleLoadData = self.c_function("hipModuleLoadData", self.loads, P, P)
        self.hipModuleGetFunction = self.c_function("hipModuleGetFunction", self.gets, P, P, P)
        self.hipModuleLaunchKernel = self.c_function("hipModuleLaunchKernel", self.launches, P, *(7 * [I]), P, P, P)
        self.hipDrvGetErrorString = self.c_function("hipDrvGetErrorString", self.says, I, P)

    def launches(
        self,
        function: int,
        gx: int,
        gy: int,
        gz: int,
        bx: int,
        by: int,
        bz: int,
        shared_bytes: int,
        stream: int | None,
        parameters: int,
        extra: int | None,
    ) -> None:
        assert extra is None
        values = self.read_parameters(parameters)
        self.launched.append(Launched(function, (gx, gy, gz), (bx, by, bz), shared_bytes, stream, values))


def current_stream(device_index: int) -> int:
    """Another stream for each device."""
    return STREAM + device_index


def _write(address: int, value: int) -> None:
    ctypes.c_void_p.from_address(address).value = value
