"""Parhelion beside transformers on this CPU: same weights, same prompts, same threads, one run, rounds interleaved.

Each engine lives in a process of its own, so that neither's thread pool or memory disturbs the other, and only one of
them works at a time. A round lets every engine decode every prompt once at batch 1, then lets Parhelion run 16 requests
at once. transformers' best dtype counts. Greedy text is compared with transformers in float32.

    python benchmarks/cpu_vs_transformers.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from parhelion.bench.machine import Circumstances, describe_circumstances
from parhelion.bench.report import write_json
from parhelion.config import EngineConfig
from parhelion.models.resolve import resolve_model
from parhelion.platform.cores import usable_cores
from parhelion.platform.measure import Summary, summarize
from parhelion.types import SamplingParams, TokensPrompt

RESULT = Path(__file__).parent / "results" / "cpu_vs_transformers.json"
QUESTIONS = (
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain how a binary search works, then write it in Python.",
    "List five facts about the ocean and explain each in one sentence.",
    "What is the difference between weather and climate?",
)
PARHELION = "parhelion"
ORACLE = "float32"


@dataclass(frozen=True)
class Settings:
    """What is measured. ``concurrency`` is Parhelion's in the throughput part."""

    model: str = "smollm2-135m"
    threads: int = 1
    prompts: int = 4
    output_length: int = 128
    rounds: int = 5
    concurrency: int = 16
    transformers_dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    parhelion_dtype: str = "auto"
    compile: bool = False


@dataclass(frozen=True)
class Work:
    """Requests to run at once, greedily and to their full length."""

    prompts: tuple[tuple[int, ...], ...]
    output_length: int


@dataclass(frozen=True)
class Done:
    """What came back: tokens per request, wall seconds of all, and seconds per decode step if there was one request."""

    token_ids: tuple[tuple[int, ...], ...]
    wall_s: float
    decode_step_s: float | None


@dataclass(frozen=True)
class EngineFigures:
    """One engine in one dtype."""

    engine: str
    dtype: str
    decode_ms_per_token: Summary
    batch1_tokens_per_s: Summary
    concurrent_tokens_per_s: Summary | None
    prompts_with_oracle_text: int


@dataclass(frozen=True)
class Comparison:
    """The result file. A ratio is Parhelion's figure over transformers' best of the same round."""

    benchmark: str
    settings: Settings
    engines: tuple[EngineFigures, ...]
    best_transformers_dtype: str
    decode_speedup: Summary
    throughput_ratio: Summary
    greedy_text_intact: bool
    circumstances: Circumstances


class Peer:
    """An engine in its own process, driven over a pipe."""

    def __init__(self, open_engine: Callable[..., Callable[[Work], Done]], *arguments: str | int | bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, open_engine, arguments), daemon=True)
        self._process.start()
        there.close()
        self._here.recv()  # it says when it is loaded

    def run(self, work: Work) -> Done:
        """Run the work there; EOFError if that process died."""
        self._here.send(work)
        done: Done = self._here.recv()
        return done

    def close(self) -> None:
        """End the process."""
        self._here.send(None)
        self._process.join(30)


def _serve(pipe: Connection, open_engine: Callable[..., Callable[[Work], Done]], arguments: tuple[Any, ...]) -> None:
    run = open_engine(*arguments)
    pipe.send("ready")
    while (work := pipe.recv()) is not None:
        pipe.send(run(work))


def open_transformers(path: str, dtype: str, threads: int) -> Callable[[Work], Done]:
    """transformers with its own KV cache and dense weights: it dequantizes the GGUF on loading."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.generation.streamers import BaseStreamer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    file = Path(path)
    model = AutoModelForCausalLM.from_pretrained(
        str(file.parent),
        gguf_file=file.name,
        dtype=getattr(torch, dtype),
        # Packed weights would save memory and cost speed; the comparison is with its fastest way.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.eval()

    class Clock(BaseStreamer):
        """Notes when each token comes; the first call is the prompt."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, value: object) -> None:
            self.times.append(time.perf_counter())

        def end(self) -> None:
            pass

    def run(work: Work) -> Done:
        clock = Clock()
        prompt = torch.tensor(work.prompts)
        n = work.output_length
        start = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=False,
                max_new_tokens=n,
                eos_token_id=None,
                pad_token_id=0,
                streamer=clock,
            )
        wall = time.perf_counter() - start
        times = clock.times[1:]
        ids = tuple(tuple(row[len(work.prompts[0]) :]) for row in output.tolist())
        return Done(ids, wall, (times[-1] - times[0]) / (len(times) - 1))

    return run


def open_parhelion(path: str, dtype: str, threads: int, compiled: bool) -> Callable[[Work], Done]:
    """Parhelion's offline engine, without the prefix cache: each round must do all of the work."""
    from parhelion.engine.llm import LLM

    llm = LLM(
        model=path,
        dtype=dtype,
        threads=threads,
        compile=compiled,
        enable_prefix_caching=False,
        kv_cache_memory=512 << 20,
    )

    def run(work: Work) -> Done:
        params = SamplingParams(temperature=0.0, max_tokens=work.output_length, ignore_eos=True)
        prompts = [TokensPrompt(prompt_token_ids=list(ids)) for ids in work.prompts]
        start = time.perf_counter()
        if len(prompts) > 1:
            outputs = llm.generate(prompts, params)
            wall = time.perf_counter() - start
            return Done(tuple(tuple(output.outputs[0].token_ids) for output in outputs), wall, None)
        first = last = 0.0
        first_count = 0
        ids: tuple[int, ...] = ()
        for output in llm.stream(prompts[0], params):
            last, ids = time.perf_counter(), tuple(output.outputs[0].token_ids)
            if not first and ids:
                first, first_count = last, len(ids)
        return Done((ids,), last - start, (last - first) / max(len(ids) - first_count, 1))

    return run


@dataclass
class Samples:
    """What the rounds gave for one engine: a figure a round (over all prompts), and each prompt's ids."""

    decode_ms: list[float]
    batch1_rate: list[float]
    concurrent_rate: list[float]
    ids: dict[int, tuple[int, ...]]


def measure(settings: Settings, say: Callable[[str], None]) -> Comparison:
    """Run the comparison; takes minutes."""
    path = str(resolve_model(settings.model))
    prompts, ends = tokenize(path, settings.prompts)
    peers: dict[str, Peer] = {}
    try:
        for dtype in settings.transformers_dtypes:
            say(f"loading transformers in {dtype}")
            peers[dtype] = Peer(open_transformers, path, dtype, settings.threads)
        say(f"loading parhelion in {settings.parhelion_dtype}")
        peers[PARHELION] = Peer(open_parhelion, path, settings.parhelion_dtype, settings.threads, settings.compile)
        samples = {name: Samples([], [], [], {}) for name in peers}
        for number in range(settings.rounds + 1):
            for name, peer in peers.items():
                say(f"round {number} of {settings.rounds}: {name}")
                run_round(peer, samples[name], prompts, settings, counted=number > 0, concurrent=name == PARHELION)
    finally:
        for peer in peers.values():
            peer.close()
    for sample in samples.values():
        sample.ids = {i: until_end(ids, ends) for i, ids in sample.ids.items()}
    return compare(settings, samples)


def tokenize(path: str, count: int) -> tuple[list[tuple[int, ...]], frozenset[int]]:
    """The first questions as chat prompts, in ids; and the ids that end a text."""
    from parhelion.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(path))
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": q}]) for q in QUESTIONS[:count]]
    prompts = [tuple(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    return prompts, frozenset(tokenizer.eos_token_ids)


def until_end(ids: tuple[int, ...], ends: frozenset[int]) -> tuple[int, ...]:
    """The ids up to the end of the text; what the model was made to say after it means nothing."""
    return next((ids[:i] for i, token in enumerate(ids) if token in ends), ids)


def run_round(
    peer: Peer, samples: Samples, prompts: list[tuple[int, ...]], settings: Settings, *, counted: bool, concurrent: bool
) -> None:
    """One round of one engine; a round that does not count warms it up."""
    n = settings.output_length
    singles = [peer.run(Work((prompt,), n)) for prompt in prompts]
    together = None
    if concurrent:
        many = tuple(prompts[i % len(prompts)] for i in range(settings.concurrency))
        together = peer.run(Work(many, n))
    samples.ids = {i: done.token_ids[0] for i, done in enumerate(singles)}
    if not counted:
        return
    samples.decode_ms.append(1e3 * sum(done.decode_step_s or 0.0 for done in singles) / len(singles))
    samples.batch1_rate.append(n * len(singles) / sum(done.wall_s for done in singles))
    if together is not None:
        samples.concurrent_rate.append(n * settings.concurrency / together.wall_s)


def compare(settings: Settings, samples: dict[str, Samples]) -> Comparison:
    """Figures and ratios; a ratio is formed within a round, then summarized."""
    ours = samples[PARHELION]
    theirs = {name: sample for name, sample in samples.items() if name != PARHELION}
    best = min(theirs, key=lambda name: summarize(theirs[name].decode_ms).median)
    rounds = range(settings.rounds)
    decode = [min(s.decode_ms[i] for s in theirs.values()) / ours.decode_ms[i] for i in rounds]
    throughput = [ours.concurrent_rate[i] / max(s.batch1_rate[i] for s in theirs.values()) for i in rounds]
    oracle = samples.get(ORACLE, ours).ids
    figures = tuple(
        EngineFigures(
            engine=PARHELION if name == PARHELION else "transformers",
            dtype=settings.parhelion_dtype if name == PARHELION else name,
            decode_ms_per_token=summarize(sample.decode_ms),
            batch1_tokens_per_s=summarize(sample.batch1_rate),
            concurrent_tokens_per_s=summarize(sample.concurrent_rate) if sample.concurrent_rate else None,
            prompts_with_oracle_text=sum(sample.ids[i] == oracle[i] for i in oracle),
        )
        for name, sample in samples.items()
    )
    return Comparison(
        benchmark="cpu_vs_transformers",
        settings=settings,
        engines=figures,
        best_transformers_dtype=best,
        decode_speedup=summarize(decode),
        throughput_ratio=summarize(throughput),
        greedy_text_intact=ours.ids == oracle,
        circumstances=describe_circumstances(),
    )


def print_comparison(result: Comparison) -> None:
    """The figures for a person."""
    from rich.console import Console
    from rich.table import Table

    table = Table("engine", "dtype", "decode ms/token", "batch-1 tokens/s", f"{result.settings.concurrency} at once")
    for row in result.engines:
        together = row.concurrent_tokens_per_s
        cells = (row.decode_ms_per_token, row.batch1_tokens_per_s, together)
        shown = [f"{s.median:.1f} ({s.p10:.1f} to {s.p90:.1f})" if s else "" for s in cells]
        table.add_row(row.engine, row.dtype, *shown)
    console = Console()
    console.print(table)
    console.print(
        f"decode {result.decode_speedup.median:.2f}x transformers' best ({result.best_transformers_dtype}); "
        f"throughput {result.throughput_ratio.median:.2f}x; greedy text intact: {result.greedy_text_intact}"
    )


def main() -> None:
    """Parse the options, measure, print, write."""
    usual = Settings(threads=usable_cores())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few tokens, to see that it works; no figure to quote")
    parser.add_argument("--rounds", type=int, default=usual.rounds)
    parser.add_argument("--threads", type=int, default=usual.threads)
    parser.add_argument("--dtype", default=usual.parhelion_dtype, help="Parhelion's dtype")
    parser.add_argument("--compile", action="store_true", default=EngineConfig.compile, help="Parhelion's --compile")
    parser.add_argument("--output", type=Path, default=None, help=f"default: benchmarks/results/{RESULT.name}")
    options = parser.parse_args()
    settings = replace(
        usual, rounds=options.rounds, threads=options.threads, parhelion_dtype=options.dtype, compile=options.compile
    )
    if options.quick:
        settings = replace(settings, prompts=2, output_length=16, rounds=2, transformers_dtypes=("float32", "bfloat16"))
    result = measure(settings, lambda text: print(text, flush=True))
    print_comparison(result)
    if options.output or not options.quick:
        write_json(result, options.output or RESULT)


if __name__ == "__main__":
    main()
