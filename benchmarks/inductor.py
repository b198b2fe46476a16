"""What TorchInductor gains and costs on this CPU: the engine with and without ``--compile``, rounds interleaved.

Each engine lives in a process of its own and only one works at a time. The compiled one starts twice with a fresh cache
folder: the first start shows what compiling costs, the second what is left of that once it is cached.

    python benchmarks/inductor.py [--rounds N] [--output FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from parhelion.bench.report import Measurement, Report, make_report, to_table, write_json
from parhelion.platform.measure import summarize
from parhelion.types import SamplingParams, TokensPrompt

RESULT = Path(__file__).parent / "results" / "inductor.json"
MODEL = "smollm2-135m"
OUTPUT_LENGTH = 96
CONCURRENCY = 16


@dataclass(frozen=True)
class Settings:
    """What is measured. A ratio is formed within a round; above 1, compiling gains."""

    model: str = MODEL
    output_length: int = OUTPUT_LENGTH
    concurrency: int = CONCURRENCY
    rounds: int = 5


def serve(pipe: Connection, compiled: bool) -> None:
    """Load an engine, say what compiling took, then run a round for every message until None comes."""
    from parhelion import LLM

    with LLM(MODEL, compile=compiled, enable_prefix_caching=False, kv_cache_memory=512 << 20) as llm:
        pipe.send(llm.info.compile_s)
        params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_LENGTH, ignore_eos=True)
        prompt = TokensPrompt(prompt_token_ids=list(range(100, 132)))
        while pipe.recv() is not None:
            times = [time.perf_counter() for _ in llm.stream(prompt, params)]
            start = time.perf_counter()
            llm.generate([prompt] * CONCURRENCY, params)
            rate = CONCURRENCY * OUTPUT_LENGTH / (time.perf_counter() - start)
            pipe.send((1e3 * (times[-1] - times[0]) / (len(times) - 1), rate))


class Engine:
    """An engine in its own process."""

    def __init__(self, compiled: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there, compiled), daemon=True)
        self._process.start()
        there.close()
        self.compile_s: float = self._pipe.recv()

    def round(self) -> tuple[float, float]:
        """Milliseconds a token at batch 1, and tokens a second of CONCURRENCY requests."""
        self._pipe.send("go")
        figures: tuple[float, float] = self._pipe.recv()
        return figures

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(30)


def measure(settings: Settings) -> Report:
    """Run the comparison; takes minutes."""
    with tempfile.TemporaryDirectory(prefix="inductor-") as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        first = Engine(compiled=True)
        first.close()
        engines = {"torch": Engine(compiled=False), "inductor": Engine(compiled=True)}
        samples: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for number in range(settings.rounds + 1):
            for name, engine in engines.items():
                decode_ms, rate = engine.round()
                print(f"round {number}: {name} {decode_ms:.1f} ms/token, {rate:.0f} tokens/s", flush=True)
                if number:
                    samples[name].append((decode_ms, rate))
        for engine in engines.values():
            engine.close()
    together = f"{settings.concurrency} at once"
    measurements = [
        Measurement("inductor, first start", "compiling", "s", summarize([first.compile_s])),
        Measurement("inductor, later starts", "compiling", "s", summarize([engines["inductor"].compile_s])),
    ]
    for name, own in samples.items():
        measurements.append(Measurement(f"{name}, batch 1", "decode", "ms/token", summarize([f[0] for f in own])))
        measurements.append(Measurement(f"{name}, {together}", "output", "tokens/s", summarize([f[1] for f in own])))
    pairs = list(zip(samples["torch"], samples["inductor"], strict=True))
    speedups = summarize([eager[0] / compiled[0] for eager, compiled in pairs])
    ratios = summarize([compiled[1] / eager[1] for eager, compiled in pairs])
    measurements.append(Measurement("inductor over torch, batch 1", "speed", "x", speedups))
    measurements.append(Measurement(f"inductor over torch, {together}", "speed", "x", ratios))
    return make_report("inductor", settings, measurements)


def main() -> None:
    """Parse the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=Settings().rounds)
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    report = measure(Settings(rounds=options.rounds))
    Console().print(to_table(report))
    write_json(report, options.output)


if __name__ == "__main__":
    main()
