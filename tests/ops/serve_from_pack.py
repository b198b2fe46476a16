"""Run as a process: opens a pack, launches from it, and says what it imported of compilers and which files it wrote."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

WRITTEN: list[str] = []
ALLOWED = tempfile.mkdtemp()


def watch(event: str, arguments: tuple[object, ...]) -> None:
    """An audit hook: files that are opened for writing, made, moved or removed."""
    if event == "open":
        path, mode, flags = arguments
        writes = isinstance(mode, str) and set(mode) & set("wxa+")
        if (writes or (isinstance(flags, int) and flags & 0o3)) and not str(path).startswith((ALLOWED, "/dev/")):
            WRITTEN.append(str(path))
    elif event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen") and ALLOWED not in str(arguments[0]):
        WRITTEN.append(f"{event} {arguments[0]}")


def main() -> None:
    """Everything that a serving process imports and does with a pack."""
    sys.addaudithook(watch)
    sys.dont_write_bytecode = True
    import torch

    from parhelion.ops.registry import op, op_names
    from parhelion.ops.resolve import Resolver
    from parhelion.ops.source_hash import source_hashes
    from tests.ops.packed_norm import CPU, NORM, opened, pack, row, tiles
    from tests.platform.fake_library import FakeCuda

    for name in op_names():
        op(name)
    source_hashes()
    library = FakeCuda()
    kernels = opened(Path(ALLOWED), pack(row(8, tiles("rms_norm.cubin"))), library)
    resolver = Resolver(CPU, pack=kernels)
    with torch.inference_mode():
        x, weight = NORM.sample_inputs(5, CPU, torch.Generator())
        resolver.bind(NORM, weight)(x)
    compilers = ("helion", "triton", "sklearn", "torch._inductor.codegen", "torch._dynamo")
    imported = sorted(name for name in sys.modules if name.startswith(compilers))
    print(json.dumps({"imported": imported, "written": WRITTEN, "launched": len(library.launched)}))


if __name__ == "__main__":
    main()
