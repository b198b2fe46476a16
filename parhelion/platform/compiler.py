"""What compiling needs on this machine, and where compiled code is kept."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def cpp_compiler() -> str | None:
    """Path of the C++ compiler that TorchInductor would use, or None."""
    for name in ("g++", "clang++"):
        if path := shutil.which(name):
            return path
    return None


def cache_compiled_code(folder: Path) -> None:
    """Make TorchInductor keep what it compiles in a folder, from run to run, unless the user chose another one."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
