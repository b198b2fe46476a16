"""Run as a process: imports all that serves, opens a pack, launches from it, answers requests with the worker of GPUs,
and says what it imported of compilers and which files it wrote.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
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


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}


def answered() -> int:
    """How many tokens an engine with the worker of GPUs answers with."""
    from tests.engine.device_cores import core_of, greedy_requests, run

    folder = Path(ALLOWED) / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    outputs = run(core_of(folder, True, True, 1000, load_format="dummy"), greedy_requests()[:3])
    return sum(map(len, outputs.values()))


def main() -> None:
    """Everything that a serving process imports and does with a pack."""
    sys.addaudithook(watch)
    sys.dont_write_bytecode = True
    import torch

    import parhelion.engine
    import parhelion.models
    import parhelion.server

    for package in (parhelion.engine, parhelion.models, parhelion.server):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
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
    num_tokens = answered()
    compilers = ("helion", "triton", "sklearn", "torch._inductor.codegen", "torch._dynamo")
    imported = sorted(name for name in sys.modules if name.startswith(compilers))
    print(
        json.dumps({"imported": imported, "written": WRITTEN, "launched": len(library.launched), "tokens": num_tokens})
    )


if __name__ == "__main__":
    main()
