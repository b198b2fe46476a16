"""Tensor parallelism on two GPUs: parity with one, speed, what collectives and draws take, and what the planner said.

    PYTHONPATH=. python benchmarks/h100x2_tp.py [--only logits,speed2,speed1,collectives,draws,silent,
                                                 killed,stopped,hung,texts,float32,
                                                 replicas,guesses]
                                                [--pack auto] [--real PATH] [--output FILE]
    PYTHONPATH=. python benchmarks/h100x2_tp.py --device cpu --model tiny         # a rehearsal, in seconds

Each piece runs in a process of its own, and is ended with all its ranks when its time is over. The result is written
whenever a piece has said something, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from gpu_texts import guesses_against_plain
from pieces import add_options, run_all
from tp_collectives import HIDDEN_SIZE, LARGE_BYTES, ROUNDS, SIZES, measure_collectives
from tp_draws import SIZES as DRAWN_SIZES
from tp_draws import VOCAB_SIZE, draws_lines, measure_draws
from tp_faults import STRIKES, struck
from tp_parity import float32_texts, logits_of_ranks, replicas, texts, write_random
from tp_ranks import on_ranks
from tp_speed import SpeedOptions, beside, speed, without_collectives
from tp_tables import speed_lines, sums_lines

from parhelion.bench.compare.checkpoint import SHAPES

RESULT = Path(__file__).parent / "results" / "h100x2_tp.json"
PIECES = {
    "logits": 150,
    "speed2": 150,
    "speed1": 120,
    "collectives": 120,
    "draws": 90,
    "silent": 120,
    "killed": 60,
    "stopped": 70,
    "hung": 70,
    "texts": 100,
    "float32": 240,
    "replicas": 60,
    "guesses": 240,
}
"""In the order in which they run, with the seconds that each may take."""

TP = 2


def work(piece: str, options: argparse.Namespace, folder: Path) -> Iterable[dict[str, Any]]:
    """What a piece measures, row by row."""
    on_cpu = options.device == "cpu"
    if piece == "logits":
        return on_ranks(logits_of_ranks, options.device, TP, str(write_random(folder)), 30 if on_cpu else 300)
    if piece == "texts":
        return texts(folder, options.device, options.real, 8 if on_cpu else 40)
    if piece == "float32":
        return float32_texts(folder, options.device, {"tp": TP}, 8 if on_cpu else 40)
    if piece == "replicas":
        return replicas(folder, options.device, 8 if on_cpu else 40)
    if piece == "guesses":
        # What is compiled for each takes long.
        rows = guesses_against_plain(folder, options.device, {"tp": TP}, ("head", "ngram"))
        return ({"what": piece} | row for row in rows)
    if piece in STRIKES:
        return struck(folder, options.device, piece)
    if piece == "collectives":
        sizes, hidden = ((1, 3), 64) if on_cpu else (SIZES, HIDDEN_SIZE)
        large, rounds = (1 << 16, 2) if on_cpu else (LARGE_BYTES, ROUNDS)
        return on_ranks(measure_collectives, options.device, TP, sizes, hidden, large, rounds)
    if piece == "draws":
        sizes, vocab_size, rounds = ((2,), 1000, 1) if on_cpu else (DRAWN_SIZES, VOCAB_SIZE, ROUNDS)
        return on_ranks(measure_draws, options.device, TP, sizes, vocab_size, options.pack, rounds)
    asked = speed_options(options)
    if piece == "silent":
        return without_collectives(folder, asked)
    return speed(folder, asked, 1 if piece == "speed1" else TP)


def speed_options(options: argparse.Namespace) -> SpeedOptions:
    """Of all pieces that serve a model."""
    lengths = (16, 4, 2) if options.device == "cpu" else (512, 128, 3)
    batches = tuple(int(batch) for batch in options.batches.split(","))
    return SpeedOptions(options.model, options.device, options.pack, batches, *lengths)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, PIECES, 570.0, RESULT)
    parser.add_argument("--model", default="qwen3-8b", choices=list(SHAPES), help="of the speed")
    parser.add_argument("--batches", default=None, help="of the speed, separated by commas")
    parser.add_argument("--pack", default="auto", help="of the speed; a name, a path, auto or off")
    parser.add_argument("--real", type=Path, help="a model whose texts are compared as well")
    options = parser.parse_args(argv)
    options.batches = options.batches or ("1,2" if options.device == "cpu" else "1,16,64,256")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """All pieces, the table last; 1 if any of them failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse(arguments)
    result = run_all(Path(__file__), work, PIECES, options, arguments)
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
    for piece in ("logits", "texts", "float32", "replicas", "guesses"):
        for row in content["pieces"].get(piece, {"rows": []})["rows"]:
            print({key: value for key, value in row.items() if key not in ("what", "passed", "kernels")})
    for lines in (speed_lines(content), sums_lines(content), draws_lines(content)):
        print("\n".join(["", *lines]))


if __name__ == "__main__":
    sys.exit(main())
