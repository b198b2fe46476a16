"""A pack that holds one op, ``rms_norm`` over 64 elements, and a driver that writes its launches down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from parhelion.ops.pack_kernels import PackKernels
from parhelion.ops.rms_norm import RmsNorm
from parhelion.packs.format import Argument, Binary, Candidate, Pack, Recipe, Row
from parhelion.packs.match import Chosen, match
from parhelion.packs.store import read_pack, write_pack
from parhelion.platform.driver import Function
from parhelion.platform.driver_cuda import CudaDriver
from tests.packs import sample
from tests.platform import fake_library
from tests.platform.fake_library import FakeCuda

CPU = torch.device("cpu")
NORM = RmsNorm(64, dtype=torch.bfloat16)
HASHES = {"rms_norm": "0" * 16}
CONFIG = {"block_sizes": [1], "num_warps": 2}
RECIPE = Recipe(
    parameters=("x", "weight", "y", "epsilon", "programmatic"),
    grid=("x.size(0)",),
    arguments=(Argument("x", "*"), Argument("weight", "*"), Argument("y", "*"), Argument("x.size(0)", "i32")),
)


def binary(**changes: Any) -> Binary:
    kinds = ("bfloat16[2]", "bfloat16[2]", "bfloat16[2]", repr(NORM.epsilon), "False")
    return sample.binary(config=CONFIG, kinds=kinds, recipe=RECIPE, **changes)


def tiles(*files: str, time_us: float = 2.0) -> Candidate:
    """The tile program."""
    return Candidate("helion", CONFIG, time_us, time_us, time_us, files)


def other(provider: str, time_us: float = 4.0) -> Candidate:
    return Candidate(provider, None, time_us, time_us, time_us)


def row(num_tokens: int, *candidates: Candidate) -> Row:
    return sample.row(num_tokens, NORM.key(), best=candidates[0], runners_up=candidates[1:])


def pack(*rows: Row, **changes: Any) -> Pack:
    return sample.pack(rows=rows, **{"binaries": (binary(),), "source_hashes": HASHES, "models": ()} | changes)


def opened(
    folder: Path,
    content: Pack,
    library: FakeCuda,
    files: dict[str, bytes] | None = None,
    here: Any = sample.H100,
    hashes: dict[str, str] | None = None,
    behind: PackKernels | None = None,
) -> PackKernels:
    """The pack, written, read and opened with a driver that launches nothing."""
    write_pack(content, files or sample.FILES, folder / "pack")
    stored = read_pack(folder / "pack")
    driver = CudaDriver(library, fake_library.current_stream)

    def load(code: bytes, symbol: str, shared_bytes: int) -> Function:
        library.num_parameters = len(RECIPE.arguments) + 2
        return driver.load_function(code, symbol, shared_bytes, 0)

    chosen = Chosen(stored, match(content.fingerprint, here))
    return PackKernels(chosen, CPU, HASHES if hashes is None else hashes, 132, load, behind)
