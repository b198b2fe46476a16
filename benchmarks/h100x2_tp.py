"""Tensor parallelism on two GPUs: parity with one, speed, what collectives take, and what the planner said.

    PYTHONPATH=. python benchmarks/h100x2_tp.py [--only logits,speed2,speed1,collectives,silent,killed,texts]
                                                [--pack auto] [--real PATH] [--output FILE]
    PYTHONPATH=. python benchmarks/h100x2_tp.py --device cpu --model tiny         # a rehearsal, in seconds

Each piece runs in a process of its own, and is ended with all its ranks when its time is over. The result is written
whenever a piece has said something, so that a run that is cut short leaves what it has.
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
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from tp_collectives import HIDDEN_SIZE, LARGE_BYTES, ROUNDS, SIZES, measure_collectives
from tp_parity import killed, logits_of_ranks, texts, write_random
from tp_ranks import on_ranks
from tp_speed import SpeedOptions, beside, speed, without_collectives
from tp_tables import speed_lines, sums_lines

from parhelion.bench.compare.checkpoint import SHAPES
from parhelion.bench.machine import describe_circumstances
from parhelion.platform.device import choose_device, device_name

RESULT = Path(__file__).parent / "results" / "h100x2_tp.json"
PIECES = {
    "logits": 150,
    "speed2": 150,
    "speed1": 120,
    "collectives": 120,
    "silent": 120,
    "killed": 60,
    "texts": 240,
}
"""In the order in which they run, with the seconds that each may take."""

ENVIRONMENT = ("NCCL_", "TORCH_NCCL_", "TORCH_SYMM_MEM_", "CUDA_")
"""Variables that begin so are told in the result: they are left as they are found."""

TP = 2


def work(piece: str, options: argparse.Namespace, folder: Path) -> Iterable[dict[str, Any]]:
    """What a piece measures, row by row."""
    on_cpu = options.device == "cpu"
    if piece == "logits":
        return on_ranks(logits_of_ranks, options.device, TP, str(write_random(folder)), 30 if on_cpu else 300)
    if piece == "texts":
        return texts(folder, options.device, options.real, 8 if on_cpu else 40)
    if piece == "killed":
        return killed(folder, options.device)
    if piece == "collectives":
        sizes, hidden = ((1, 3), 64) if on_cpu else (SIZES, HIDDEN_SIZE)
        large, rounds = (1 << 16, 2) if on_cpu else (LARGE_BYTES, ROUNDS)
        return on_ranks(measure_collectives, options.device, TP, sizes, hidden, large, rounds)
    asked = speed_options(options)
    if piece == "silent":
        return without_collectives(folder, asked)
    return speed(folder, asked, 1 if piece == "speed1" else TP)


def speed_options(options: argparse.Namespace) -> SpeedOptions:
    """Of all pieces that serve a model."""
    lengths = (16, 4, 2) if options.device == "cpu" else (512, 128, 3)
    batches = tuple(int(batch) for batch in options.batches.split(","))
    return SpeedOptions(options.model, options.device, options.pack, batches, *lengths)


def run_piece(options: argparse.Namespace) -> None:
    """In a process of its own: write every row to the file that was named, and where it hangs if its time is over."""
    faulthandler.dump_traceback_later(0.9 * PIECES[options.piece])
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


def run_apart(piece: str, arguments: Sequence[str], limit_s: float, result: Result) -> None:
    """Run a piece in its own process group until it ends or its time is over, and take in its rows as they come."""
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        rows.touch()
        started = time.monotonic()
        command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--piece", piece, "--rows", str(rows)]
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

    def __init__(self, options: argparse.Namespace) -> None:
        device = choose_device(options.device)
        circumstances = asdict(describe_circumstances())
        self.content: dict[str, Any] = {
            "benchmark": "h100x2_tp",
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


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PIECES), help="pieces, separated by commas")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--model", default="qwen3-8b", choices=list(SHAPES), help="of the speed")
    parser.add_argument("--batches", default=None, help="of the speed, separated by commas")
    parser.add_argument("--pack", default="auto", help="of the speed; a name, a path, auto or off")
    parser.add_argument("--real", type=Path, help="a model whose texts are compared as well")
    parser.add_argument("--seconds", type=float, default=570.0, help="of all pieces; what is left out then is said")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--piece", choices=list(PIECES), help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.batches = options.batches or ("1,2" if options.device == "cpu" else "1,16,64,256")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """All pieces, the table last; 1 if any of them failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse(arguments)
    if options.piece is not None:
        run_piece(options)
    started = time.monotonic()
    result = Result(options)
    for piece in (each for each in PIECES if each in options.only.split(",")):
        left_s = options.seconds - (time.monotonic() - started)
        if left_s < 10:
            result.ended(piece, 0.0, "no time was left")
            continue
        run_apart(piece, arguments, min(PIECES[piece], left_s), result)
        print(f"{piece}: {result.content['pieces'][piece]['seconds']} s", flush=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            asked = speed_options(options)
            if any(row["what"] == "speed" for row in result.rows()):
                result.content["beside"] = list(beside(Path(folder), asked, result.rows()))
    except Exception as error:
        traceback.print_exc()
        result.content["beside"] = [{"what": "beside", "passed": False, "error": f"{type(error).__name__}: {error}"}]
    result.write()
    print_result(result.content)
    return 0 if all(piece["passed"] for piece in result.content["pieces"].values()) else 1


def print_result(content: dict[str, Any]) -> None:
    """What was found, in short."""
    for name, piece in content["pieces"].items():
        failed = [row for row in piece["rows"] if not row["passed"]]
        print(f"{name}: {'passed' if piece['passed'] else 'FAILED'} in {piece['seconds']} s {piece['problem'] or ''}")
        for row in failed:
            print(f"  {json.dumps({key: value for key, value in row.items() if key != 'logprobs'})[:400]}")
    for piece in ("logits", "texts"):
        for row in content["pieces"].get(piece, {"rows": []})["rows"]:
            print({key: value for key, value in row.items() if key not in ("what", "passed", "kernels")})
    for lines in (speed_lines(content), sums_lines(content)):
        print("\n".join(["", *lines]))


if __name__ == "__main__":
    sys.exit(main())
