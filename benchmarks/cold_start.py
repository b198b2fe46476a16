"""From the start of a process to its first token, with nothing of the disk in memory, and what each phase takes.

    PYTHONPATH=. python benchmarks/cold_start.py --model qwen3-8b --pack h100 [--rounds 3] [--output FILE]

Before each round the pages of every file that the process may read (Python, its packages, the pack) are given up, as
far as the kernel lets go of what others have mapped; this process maps next to nothing itself. The measured one then
imports, loads dummy FP8 weights, and answers a prompt of 512 tokens with one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "cold_start.json"
MARK = "cold start: "
CAPTURED: dict[str, Any] = {"capture_output": True, "text": True, "check": True}


def let_go(folders: list[Path]) -> int:
    """Give up the cached pages of all files below; returns how many files there are."""
    count = 0
    for file in _files(folders):
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            count += 1
        finally:
            os.close(descriptor)
    return count


def _files(folders: list[Path]) -> Iterator[Path]:
    for folder in folders:
        if folder.is_file():
            yield folder
        for base, _, names in os.walk(folder):
            yield from (Path(base) / name for name in names)


def read_folders(pack: str) -> list[Path]:
    """Where everything lies that the process reads."""
    found = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platlib", "purelib")}
    found |= {Path(entry) for entry in sys.path if entry}
    return [*found, *([Path(pack)] if Path(pack).exists() else [])]


def prepare(folder: Path, model: str, device: str) -> None:
    """Write the model's config, and say what it is measured on."""
    import torch

    from parhelion.bench.compare.checkpoint import FP8_PER_TOKEN_CONFIG, QWEN3_1_7B, QWEN3_8B, TINY, write_config
    from parhelion.platform.device import device_name

    shape = {"qwen3-1.7b": QWEN3_1_7B, "qwen3-8b": QWEN3_8B, "tiny": TINY}[model]
    write_config(shape, folder, FP8_PER_TOKEN_CONFIG)
    print(json.dumps({"device": device_name(torch.device(device)), "versions": {"torch": torch.__version__}}))


def child(folder: str, device: str, pack: str, began: float) -> None:
    """What the measured process does. ``began`` is when it was started, by the system's monotonic clock."""
    from parhelion import LLM, SamplingParams
    from parhelion.types import TokensPrompt

    imported = time.monotonic()
    with LLM(folder, device=device, load_format="dummy", pack=pack, max_model_len=1024) as llm:
        ready = time.monotonic()
        prompt = TokensPrompt(prompt_token_ids=list(range(5, 517)))
        llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True))
        first = time.monotonic()
        phases = {f"engine: {phase.name}": phase.seconds for phase in llm.info.phases}
        found = {
            "imports": imported - began,
            "engine": ready - imported,
            "first token": first - ready,
            "total": first - began,
        }
        print(MARK + json.dumps(found | {"of the engine": phases, "pack": llm.info.pack}), flush=True)


def measured(folder: Path, device: str, pack: str) -> dict[str, Any]:
    """One process.

    Raises:
        RuntimeError: it failed; the message is the end of what it said.
    """
    # Children that measure from their parent's clock: on Linux the monotonic clock is common to all processes.
    command = [sys.executable, __file__, "--child", str(folder), "--device", device, "--pack", pack]
    done = subprocess.run([*command, "--began", repr(time.monotonic())], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    raise RuntimeError(f"the process ended with status {done.returncode}: {done.stderr[-1500:]}")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen3-8b", help="qwen3-1.7b, qwen3-8b or tiny")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--pack", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--prepare", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(Path(options.prepare), options.model, options.device)
        return
    if options.child:
        child(options.child, options.device, options.pack, options.began)
        return

    report: dict[str, Any] = {
        "command": " ".join(["python", "benchmarks/cold_start.py", *sys.argv[1:]]),
        "model": options.model,
        "rounds": [],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / options.model
        command = [sys.executable, __file__, "--prepare", str(folder), "--model", options.model]
        report |= json.loads(subprocess.run([*command, "--device", options.device], **CAPTURED).stdout)
        for _ in range(options.rounds):
            files = let_go(read_folders(options.pack))
            found = measured(folder, options.device, options.pack)
            report["rounds"].append(found | {"files let go": files})
            report["total_s"] = statistics.median(each["total"] for each in report["rounds"])
            options.output.write_text(json.dumps(report, indent=1))
            print(found, flush=True)


if __name__ == "__main__":
    main()
