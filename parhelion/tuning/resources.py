"""What a built program takes of a device, read from the binary (NVIDIA) or from its assembly (AMD)."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

_NVIDIA = re.compile(r"Function (?P<name>\S+):\s+REG:(?P<registers>\d+) STACK:(?P<stack>\d+)")


@dataclass(frozen=True)
class Resources:
    """What one thread of a program takes.

    Attributes:
        registers: 32-bit registers (AMD: vector registers, accumulators included).
        stack_bytes: memory a thread keeps outside its registers; what is not an array of the program's own is spilled
            registers, and the tile programs have no such arrays.
    """

    registers: int
    stack_bytes: int


def nvidia_resources(cubin: bytes) -> Resources:
    """Asks the ``cuobjdump`` that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump()), "-res-usage", file.name]
        shown = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse_nvidia(shown.stdout)


def parse_nvidia(text: str) -> Resources:
    """The largest of the functions that ``cuobjdump -res-usage`` lists."""
    found = [(int(match["registers"]), int(match["stack"])) for match in _NVIDIA.finditer(text)]
    return Resources(max(registers for registers, _ in found), max(stack for _, stack in found))


def amd_resources(assembly: str) -> Resources:
    """From the metadata at the end of the assembly (LLVM: User Guide for AMDGPU Backend, code object metadata)."""

    def largest(key: str) -> int:
        return max(map(int, re.findall(rf"\.{key}:\s+(\d+)", assembly)), default=0)

    return Resources(largest("vgpr_count"), largest("private_segment_fixed_size"))


def cuobjdump() -> Path:
    """Where Triton keeps it."""
    spec = find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
