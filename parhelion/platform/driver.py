"""Binaries loaded and launched through the GPU's own driver, with neither Triton nor Helion in the process.

The driver's library is opened when it is first asked for. What is loaded stays loaded until the process ends: CUDA
graphs refer to functions, and nothing tells when the last of them is gone.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from parhelion.errors import PackError, ParhelionError

Launch = Callable[[int, int, int], None]
"""``launch(x, y, z)``: run a grid of that many programs on the current torch stream of the function's device."""

CurrentStream = Callable[[int], int]
"""The raw handle of a device's current torch stream, from the device's index."""


class DriverError(ParhelionError):
    """The GPU's driver is missing, or refused a call."""


@dataclass(frozen=True)
class Function:
    """A function of a loaded binary.

    Attributes:
        symbol: its name.
        handle, module: the driver's handles.
        shared_bytes: dynamic shared memory of one program.
        device_index: where it was loaded.
        driver: who loaded it.
    """

    symbol: str
    handle: ctypes.c_void_p
    module: ctypes.c_void_p
    shared_bytes: int
    device_index: int
    driver: Driver

    def launcher(self, parameters: ctypes.Array[ctypes.c_void_p], num_warps: int, programmatic: bool) -> Launch:
        """What launches it.

        Args:
            parameters: the addresses of its parameters' values, which are read at each launch. They must stay valid
                for as long as the result is used.
            num_warps: of one program.
            programmatic: with programmatic dependent launch.
        """
        return self.driver.launcher(self, parameters, num_warps, programmatic)


class Driver(Protocol):
    """What is needed of CUDA's or HIP's driver."""

    def load_function(self, binary: bytes, symbol: str, shared_bytes: int, device_index: int) -> Function:
        """A function of a binary, loaded into the current context, which is that of ``device_index``.

        The context is the device's primary one, which torch makes current in every thread that gives the device work.

        Raises:
            PackError: the binary is not for this device, has no such function, or asks for more than there is.
        """
        ...

    def launcher(
        self, function: Function, parameters: ctypes.Array[ctypes.c_void_p], num_warps: int, programmatic: bool
    ) -> Launch:
        """See ``Function.launcher``; what it returns raises DriverError where the driver refuses a launch."""
        ...


@functools.cache
def gpu_driver() -> Driver:
    """The driver that this torch was built for, opened at the first call.

    Raises:
        DriverError: there is none on this machine.
    """
    if torch.version.hip is not None:
        from parhelion.platform.driver_hip import HipDriver, open_hip

        return HipDriver(open_hip(), current_stream())
    from parhelion.platform.driver_cuda import CudaDriver, open_cuda

    return CudaDriver(open_cuda(), current_stream())


def load_function(binary: bytes, symbol: str, shared_bytes: int = 0) -> Function:
    """A function of a binary on torch's current GPU; see ``Driver.load_function``."""
    # Makes the device's primary context current in this thread, which merely asking torch about the device does not.
    torch.cuda.synchronize()
    return gpu_driver().load_function(binary, symbol, shared_bytes, torch.cuda.current_device())


def current_stream() -> CurrentStream:
    """How to ask torch for the current stream.

    ``torch.cuda.current_stream`` builds an object at every call, which takes longer than all else in a launch. This is
    what the code that TorchInductor generates calls instead.
    """
    getter: CurrentStream | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if getter is None:
        raise DriverError("this torch was built without GPU support: install a build for CUDA or ROCm")
    return getter


def open_library(names: tuple[str, ...], purpose: str) -> Any:
    """The first of these libraries that is there.

    Raises:
        DriverError: none is.
    """
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DriverError(f"{names[-1]} was not found: {purpose} needs it; install the GPU's driver")


def load_error(symbol: str, call: str, status: int, words: str) -> PackError:
    """The driver refused to load a binary."""
    return PackError(f"{call} failed for {symbol}: {words} ({status}): use a pack that was built for this GPU")


def launch_error(symbol: str, call: str, status: int, words: str, grid: tuple[int, int, int]) -> DriverError:
    """The driver refused a launch, or found an error of an earlier one."""
    return DriverError(
        f"{call} failed for {symbol} with grid {grid}: {words} ({status}); if an earlier launch is to blame, "
        "CUDA_LAUNCH_BLOCKING=1 (AMD_SERIALIZE_KERNEL=3) shows which"
    )
