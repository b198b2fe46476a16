"""Benchmarks in pieces: each in a process of its own, which is ended with all that it started when its time is over.

The result is written whenever a piece has said something, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from parhelion.bench.machine import describe_circumstances
from parhelion.platform.device import choose_device, device_name

ENVIRONMENT = ("NCCL_", "TORCH_NCCL_", "TORCH_SYMM_MEM_", "CUDA_")
"""Variables that begin so are told in the result: they are left as they are found."""

Work = Callable[[str, argparse.Namespace, Path], Iterable[dict[str, Any]]]
"""What a piece measures, row by row, given its name, the options and a folder for files."""


def add_options(parser: argparse.ArgumentParser, pieces: Mapping[str, int], seconds: float, output: Path) -> None:
    """What all such benchmarks take; ``pieces`` as for ``run_all``."""
    parser.add_argument("--only", default=",".join(pieces), help="pieces, separated by commas")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--seconds", type=float, default=seconds, help="of all pieces; what is left out then is said")
    parser.add_argument("--output", type=Path, default=output)
    parser.add_argument("--piece", choices=list(pieces), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)


def run_all(
    script: Path,
    work: Work,
    pieces: Mapping[str, int],
    options: argparse.Namespace,
    arguments: Sequence[str],
) -> Result:
    """The pieces that the options name, in order; in a piece's own process, only that one.

    Args:
        script: that is run again for each piece; its name is the benchmark's.
        work: does a piece.
        pieces: by name, with the seconds that each may take.
        options: with ``add_options``'s among them.
        arguments: that they were parsed from.
    """
    if options.piece is not None:
        run_piece(work, pieces[options.piece], options)
    started = time.monotonic()
    result = Result(script.stem, options)
    for piece in (each for each in pieces if each in options.only.split(",")):
        left_s = options.seconds - (time.monotonic() - started)
        if left_s < 10:
            result.ended(piece, 0.0, "no time was left")
            continue
        run_apart(script, piece, arguments, min(pieces[piece], left_s), result)
        print(f"{piece}: {result.content['pieces'][piece]['seconds']} s", flush=True)
    return result


def run_piece(work: Work, limit_s: float, options: argparse.Namespace) -> None:
    """In a process of its own: write every row to the file that was named, and where it hangs if its time is over."""
    faulthandler.dump_traceback_later(0.9 * limit_s)
    with tempfile.TemporaryDirectory() as folder, options.rows.open("a") as file:
        try:
            for row in work(options.piece, options, Path(folder)):
                print(options.piece, {key: value for key, value in row.items() if key != "logprobs"}, flush=True)
                file.write(json.dumps(row) + "\n")
                file.flush()
        except Exception as error:
            traceback.print_exc()
            failed = {"what": options.piece, "passed": False, "error": f"{type(error).__name__}: {error}"[:1000]}
            file.write(json.dumps(failed) + "\n")
    # Nothing is left to do, and what a library might still wait for is no matter.
    os._exit(0)


def run_apart(script: Path, piece: str, arguments: Sequence[str], limit_s: float, result: Result) -> None:
    """Run a piece in its own process group until it ends or its time is over, and take in its rows as they come."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        rows.touch()
        started = time.monotonic()
        command = [sys.executable, str(script.resolve()), *arguments, "--piece", piece, "--rows", str(rows)]
        process = subprocess.Popen(command, start_new_session=True)
        try:
            while process.poll() is None and time.monotonic() - started < limit_s:
                result.take(piece, rows)
                time.sleep(0.2)
        finally:
            seconds = time.monotonic() - started
            ended = process.poll()
            # Its ranks too, whatever has become of it.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
            result.take(piece, rows)
    problem = None if ended == 0 else f"ended after {limit_s:.0f} s" if ended is None else f"exit status {ended}"
    result.ended(piece, seconds, problem)


class Result:
    """The file, as far as it is."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        device = choose_device(options.device)
        circumstances = asdict(describe_circumstances())
        self.content: dict[str, Any] = {
            "benchmark": name,
            "device": device_name(device),
            "num_gpus": torch.cuda.device_count() if device.type == "cuda" else 0,
            "versions": versions(device),
            "command": circumstances["command"],
            "measured_at": circumstances["measured_at"],
            "circumstances": circumstances,
            "environment": {key: value for key, value in sorted(os.environ.items()) if key.startswith(ENVIRONMENT)},
            "model": options.model,
            "pieces": {},
            "beside": [],
        }
        self._output: Path = options.output
        self._taken: dict[str, int] = {}
        self.write()

    def take(self, piece: str, file: Path) -> None:
        """Rows that a piece has written since the last time."""
        lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        new = lines[self._taken.get(piece, 0) :]
        if new:
            self._taken[piece] = len(lines)
            self._of(piece)["rows"] += [json.loads(line) for line in new]
            self.write()

    def ended(self, piece: str, seconds: float, problem: str | None) -> None:
        """A piece is over."""
        found = self._of(piece)
        failed = problem is not None or not found["rows"] or not all(row["passed"] for row in found["rows"])
        found |= {"seconds": round(seconds, 1), "problem": problem, "passed": not failed}
        self.write()

    def rows(self) -> list[dict[str, Any]]:
        """Of all pieces."""
        return [row for piece in self.content["pieces"].values() for row in piece["rows"] if "error" not in row]

    def write(self) -> None:
        """Put the file in the place of the one before."""
        self._output.parent.mkdir(parents=True, exist_ok=True)
        beside_it = self._output.with_suffix(".part")
        beside_it.write_text(json.dumps(self.content, indent=1) + "\n")
        beside_it.replace(self._output)

    def _of(self, piece: str) -> dict[str, Any]:
        found: dict[str, Any] = self.content["pieces"].setdefault(piece, {"rows": []})
        return found


def versions(device: torch.device) -> dict[str, str]:
    """Of what speed depends on, CUDA's libraries included."""
    found = {package["name"]: package["version"] for package in asdict(describe_circumstances())["packages"]}
    if device.type == "cuda":
        found |= {"cuda": str(torch.version.cuda), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
    return found
