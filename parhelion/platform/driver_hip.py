"""HIP's driver, as ``libamdhip64.so`` offers it (HIP runtime API: module management).

Never run on an AMD GPU so far: its calls are tested with a stand-in for the library.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch

from parhelion.platform.driver import CurrentStream, Function, Launch, launch_error, load_error, open_library

_WARP_SIZE = 64
"""Of CDNA (gfx9), which is what packs are built for; RDNA has 32."""


def open_hip() -> Any:
    """libamdhip64: torch's own where it brings one, as a second copy in the process would know nothing of its context.

    Raises:
        DriverError: there is none.
    """
    own = Path(torch.__file__).parent / "lib" / "libamdhip64.so"
    return open_library((str(own), "libamdhip64.so"), "launching on an AMD GPU")


class HipDriver:
    """``Driver`` for AMD GPUs; see the module's docstring for what has been tested.

    Args:
        library: libamdhip64.
        current_stream: see ``driver.CurrentStream``.
    """

    def __init__(self, library: Any, current_stream: CurrentStream) -> None:
        self._library = library
        self._current_stream = current_stream

    def load_function(self, binary: bytes, symbol: str, shared_bytes: int, device_index: int) -> Function:
        """See ``Driver``. All of a compute unit's LDS may be asked for without further ado."""
        module, handle = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(symbol, "hipModuleLoadData", ctypes.byref(module), binary)
        self._check(symbol, "hipModuleGetFunction", ctypes.byref(handle), module, symbol.encode())
        return Function(symbol, handle, module, shared_bytes, device_index, self)

    def launcher(
        self, function: Function, parameters: ctypes.Array[ctypes.c_void_p], num_warps: int, programmatic: bool
    ) -> Launch:
        """See ``Driver``; AMD GPUs have no programmatic dependent launch, so a launch waits for the one before."""
        call = self._library.hipModuleLaunchKernel
        current_stream, device_index = self._current_stream, function.device_index
        handle, threads, shared_bytes = function.handle, num_warps * _WARP_SIZE, function.shared_bytes
        # Without ``argtypes`` integers pass as C's int, which is right for all of them but the stream.
        stream = ctypes.c_void_p()

        def launch(x: int, y: int, z: int) -> None:
            stream.value = current_stream(device_index)
            if status := call(handle, x, y, z, threads, 1, 1, shared_bytes, stream, parameters, None):
                raise launch_error(function.symbol, "hipModuleLaunchKernel", status, self._words(status), (x, y, z))

        return launch

    def _check(self, symbol: str, call: str, *arguments: object) -> None:
        if status := getattr(self._library, call)(*arguments):
            raise load_error(symbol, call, status, self._words(status))

    def _words(self, status: int) -> str:
        words = ctypes.c_char_p()
        self._library.hipDrvGetErrorString(status, ctypes.byref(words))
        return (words.value or b"unknown error").decode()
