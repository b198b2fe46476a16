"""A pipeline of two stages on two GPUs: parity with one GPU, and speed beside it.

    PYTHONPATH=. python benchmarks/h200x2_pp.py [--only speed2,speed1,texts] [--pack auto] [--no-overlap]
                                                [--output FILE]
    PYTHONPATH=. python benchmarks/h200x2_pp.py --device cpu --model tiny         # a rehearsal, in seconds

Each piece runs in a process of its own, and is ended with all its ranks when its time is over. The result is written
whenever a piece has said something, so that a run that is cut short leaves what it has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from pieces import add_options, run_all
from pp_tables import pp_lines
from tp_parity import float32_texts
from tp_speed import SpeedOptions, speed

from parhelion.bench.compare.checkpoint import SHAPES

RESULT = Path(__file__).parent / "results" / "h200x2_pp.json"
PIECES = {"speed2": 45, "speed1": 40, "texts": 280}
"""In the order in which they run, with the seconds that each may take."""

SECONDS = 365.0

PP = 2


def work(piece: str, options: argparse.Namespace, folder: Path) -> Iterable[dict[str, Any]]:
    """What a piece measures, row by row."""
    on_cpu = options.device == "cpu"
    if piece == "texts":
        return float32_texts(folder, options.device, {"pp": PP}, 8 if on_cpu else 40)
    lengths = (16, 4, 2) if on_cpu else (512, 128, 3)
    batches = tuple(int(batch) for batch in options.batches.split(","))
    asked = SpeedOptions(options.model, options.device, options.pack, batches, *lengths)
    stages = 1 if piece == "speed1" else PP
    rows = speed(folder, asked, 1, stages, overlap=stages == 1 or not options.no_overlap)
    return (with_totals(row, asked) for row in rows)


def with_totals(row: dict[str, Any], options: SpeedOptions) -> dict[str, Any]:
    """A row of speed with the tokens of prompts and answers together, a second."""
    if row["what"] != "speed":
        return row
    tokens = row["batch"] * (options.input_len + options.output_len)
    rates = [1e3 * tokens / ms for ms in row["whole_ms_all"]]
    return row | {"tokens_per_s": statistics.median(rates), "tokens_per_s_all": rates}


def beside(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One GPU's times over those of two stages, and the latter's tokens a second over the former's; by batch."""
    measured = {(row.get("pp", 1), row["batch"]): row for row in rows if row["what"] == "speed"}
    for (stages, batch), two in measured.items():
        one = measured.get((1, batch))
        if stages == 1 or one is None:
            continue
        yield {
            "what": "beside",
            "batch": batch,
            "tpot_speedup": one["tpot_ms"] / two["tpot_ms"],
            "prefill_speedup": one["prefill_ms"] / two["prefill_ms"],
            "throughput_gain": two["tokens_per_s"] / one["tokens_per_s"],
            "passed": True,
        }


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, PIECES, SECONDS, RESULT)
    parser.add_argument("--model", default="qwen3-8b", choices=list(SHAPES), help="of the speed")
    parser.add_argument("--batches", default=None, help="of the speed, separated by commas")
    parser.add_argument("--pack", default="auto", help="of the speed; a name, a path, auto or off")
    parser.add_argument("--no-overlap", action="store_true", help="plan no step ahead before two stages")
    options = parser.parse_args(argv)
    options.batches = options.batches or ("1,2" if options.device == "cpu" else "1,16,64")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """All pieces, the table last; 1 if any of them failed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    result = run_all(Path(__file__), work, PIECES, parse(arguments), arguments)
    result.content["beside"] = list(beside(result.rows()))
    result.write()
    print_result(result.content)
    return 0 if all(piece["passed"] for piece in result.content["pieces"].values()) else 1


def print_result(content: dict[str, Any]) -> None:
    """What was found, in short."""
    for name, piece in content["pieces"].items():
        print(f"{name}: {'passed' if piece['passed'] else 'FAILED'} in {piece['seconds']} s {piece['problem'] or ''}")
        for row in piece["rows"]:
            if row["what"] == "texts" or not row["passed"]:
                print(f"  {json.dumps({key: value for key, value in row.items() if key != 'logprobs'})[:600]}")
    print("\n".join(["", *pp_lines(content)]))


if __name__ == "__main__":
    sys.exit(main())
