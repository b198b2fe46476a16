"""A small pack that was never measured, with a binary that is none."""

from __future__ import annotations

import hashlib
from typing import Any

from parhelion.packs.format import (
    FORMAT_VERSION,
    Argument,
    Binary,
    Candidate,
    Fingerprint,
    Ledger,
    ModelEntry,
    Pack,
    Recipe,
    Row,
)

H100 = Fingerprint("nvidia", "NVIDIA H100 80GB HBM3", "sm_90", 132, 80 << 30, 3.0e12)
H200 = Fingerprint("nvidia", "NVIDIA H200", "sm_90", 132, 141 << 30, 4.2e12)
RMS_NORM = "rms_norm(hidden_size=4096, dtype=bfloat16)"
GEMM = "linear(in_features=4096, out_features=6144)"
HASHES = {"rms_norm": "a" * 64, "linear": "b" * 64}
CODE = b"\x7fELF" + bytes(range(256)) * 4


def sha256(code: bytes) -> str:
    return hashlib.sha256(code).hexdigest()


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "parameters": ("x", "weight", "y", "epsilon"),
        "grid": ("cdiv(x.size(0), 4)",),
        "arguments": (
            Argument("x", "*"),
            Argument("y", "*"),
            Argument("x.size(0)", "i32"),
            Argument("epsilon", "fp32"),
        ),
        "equal": (("x.size(1)", 4096),),
        "aligned": ("x", "y", "x.stride(0)"),
    }
    return Recipe(**fields | changes)


def binary(code: bytes = CODE, **changes: Any) -> Binary:
    fields: dict[str, Any] = {
        "kernel": "rms_norm.rms_norm",
        "config": {"block_sizes": [4], "num_warps": 4},
        "kinds": ("bfloat16[2]", "bfloat16[1]", "bfloat16[2]", "1e-06"),
        "symbol": "_helion_rms_norm",
        "file": "rms_norm.cubin",
        "sha256": sha256(code),
        "num_bytes": len(code),
        "num_warps": 4,
        "shared_bytes": 0,
        "registers": 32,
        "stack_bytes": 0,
        "recipe": recipe(),
    }
    return Binary(**fields | changes)


def candidate(provider: str = "helion", time_us: float = 4.0, config: dict[str, Any] | None = None) -> Candidate:
    if provider == "helion" and config is None:
        config = {"program": {"block_sizes": [4], "num_warps": 4}}
    binaries = ("rms_norm.cubin",) if provider == "helion" else ()
    return Candidate(provider, config, time_us, time_us * 0.9, time_us * 1.1, binaries)


def row(num_tokens: int, contract: str = RMS_NORM, **changes: Any) -> Row:
    fields: dict[str, Any] = {
        "op": contract.split("(")[0],
        "best": candidate(),
        "runners_up": (candidate("torch", 8.0), candidate("inductor", 9.0)),
        "floor_us": 3.0,
        "measured_at": num_tokens,
    }
    return Row(contract=contract, num_tokens=num_tokens, **fields | changes)


def pack(**changes: Any) -> Pack:
    fields: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "name": "h100-sxm",
        "fingerprint": H100,
        "rows": (row(1), row(16), row(64), row(16, GEMM)),
        "binaries": (binary(),),
        "source_hashes": HASHES,
        "versions": {"parhelion": "0.1.0", "torch": "2.13.0"},
        "command": "parhelion tune --model qwen3-8b",
        "created_at": "2025-01-02T03:04:05Z",
        "models": (ModelEntry("qwen3-8b", "none", (RMS_NORM, GEMM)),),
        "ledger": Ledger(tune_s=60.0, gpu_s=20.0, compile_s=100.0, num_compiled=50, num_timed=40, launch_us=3.5),
    }
    return Pack(**fields | changes)


FILES = {"rms_norm.cubin": CODE}
