"""CUDA's driver, as ``libcuda.so.1`` offers it (CUDA Driver API: module management, execution control)."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from parhelion.platform.driver import CurrentStream, Function, Launch, launch_error, load_error, open_library

_WARP_SIZE = 32
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
"""``CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES``"""
_PROGRAMMATIC_STREAM_SERIALIZATION = 6
"""``CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION``"""
_SHARED_BYTES_UNASKED = 48 * 1024
"""Dynamic shared memory that a function may have without being allowed more."""

_LAUNCH = struct.Struct("@7IP")
"""The fields of a ``CUlaunchConfig`` that differ between launches, and those that lie among them."""


class LaunchAttribute(ctypes.Structure):
    """``CUlaunchAttribute`` with an integer for its value."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("_padding", ctypes.c_char * 4),
        ("value", ctypes.c_int),
        ("_rest_of_value", ctypes.c_char * 60),
    )


class LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("num_attributes", ctypes.c_uint),
    )


def open_cuda() -> Any:
    """libcuda.

    Raises:
        DriverError: it is not installed.
    """
    return open_library(("libcuda.so.1",), "launching on an NVIDIA GPU")


class CudaDriver:
    """``Driver`` for NVIDIA GPUs.

    Args:
        library: libcuda.
        current_stream: see ``driver.CurrentStream``.
    """

    def __init__(self, library: Any, current_stream: CurrentStream) -> None:
        self._library = library
        self._current_stream = current_stream

    def load_function(self, binary: bytes, symbol: str, shared_bytes: int, device_index: int) -> Function:
        """See ``Driver``."""
        module, handle = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(symbol, "cuModuleLoadData", ctypes.byref(module), binary)
        self._check(symbol, "cuModuleGetFunction", ctypes.byref(handle), module, symbol.encode())
        if shared_bytes > _SHARED_BYTES_UNASKED:
            self._check(symbol, "cuFuncSetAttribute", handle, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        return Function(symbol, handle, module, shared_bytes, device_index, self)

    def launcher(
        self, function: Function, parameters: ctypes.Array[ctypes.c_void_p], num_warps: int, programmatic: bool
    ) -> Launch:
        """See ``Driver``."""
        attribute = LaunchAttribute(id=_PROGRAMMATIC_STREAM_SERIALIZATION, value=1)
        config = LaunchConfig(attributes=ctypes.pointer(attribute), num_attributes=int(programmatic))
        # All arguments are ctypes objects, made once: without ``argtypes`` they pass unconverted.
        pack, call, config_address = _LAUNCH.pack_into, self._library.cuLaunchKernelEx, ctypes.byref(config)
        current_stream, device_index = self._current_stream, function.device_index
        handle, threads, shared_bytes = function.handle, num_warps * _WARP_SIZE, function.shared_bytes

        def launch(x: int, y: int, z: int) -> None:
            pack(config, 0, x, y, z, threads, 1, 1, shared_bytes, current_stream(device_index))
            if status := call(config_address, handle, parameters, None):
                raise launch_error(function.symbol, "cuLaunchKernelEx", status, self._words(status), (x, y, z))

        return launch

    def _check(self, symbol: str, call: str, *arguments: object) -> None:
        if status := getattr(self._library, call)(*arguments):
            raise load_error(symbol, call, status, self._words(status))

    def _words(self, status: int) -> str:
        words = ctypes.c_char_p()
        self._library.cuGetErrorString(status, ctypes.byref(words))
        return (words.value or b"unknown error").decode()
