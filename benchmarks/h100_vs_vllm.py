"""Parhelion beside vLLM on an H100: Qwen3 1.7B and 8B with dummy FP8 weights, 512 tokens in and 128 out.

docs/compare.md says how the peer gets to a machine without a network, and what the figures mean.

    python benchmarks/h100_vs_vllm.py [--peer-path FOLDER] [--peer-python PYTHON] [--mode offline|online|both]
                                      [--model qwen3-8b] [--rates RATE...] [--output FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from parhelion.bench.compare.engines import peer
from parhelion.bench.compare.plot import write_plot
from parhelion.bench.compare.run import MODES, Plan, compare, failed_engines
from parhelion.bench.compare.settings import OfflineSettings, OnlineSettings
from parhelion.bench.compare.table import to_tables

RESULT = Path(__file__).parent / "results" / "h100_vs_vllm.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-path", help="folders for vLLM's PYTHONPATH")
    parser.add_argument("--peer-python", help="vLLM's Python; this one if left out")
    parser.add_argument("--mode", default="offline", choices=list(MODES))
    parser.add_argument("--model", action="append", help="qwen3-1.7b and qwen3-8b if left out")
    parser.add_argument("--rates", type=float, nargs="*", default=(), help="of the servers' open loop")
    parser.add_argument("--num-requests", type=int, default=200, help="of each run of the servers")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    plan = Plan(
        peers=(peer("vllm", args.peer_python, args.peer_path),),
        models=tuple(args.model or ("qwen3-1.7b", "qwen3-8b")),
        mode=MODES[args.mode],
        offline=OfflineSettings(device="cuda", timeout_s=400.0),
        online=OnlineSettings(num_requests=args.num_requests, rates=tuple(args.rates)),
    )
    comparison = compare(plan, args.output, lambda text: print(text, flush=True))
    if args.plot is not None:
        write_plot(comparison, args.plot)
    Console(width=160).print(to_tables(comparison))
    if failed := failed_engines(comparison):
        raise SystemExit("not all could be measured:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
