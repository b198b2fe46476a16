"""One request at a time: how long until the first token, and how long for each after it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parhelion.bench.report import Measurement
from parhelion.bench.speculation import summarize_guesses
from parhelion.bench.workload import random_prompts
from parhelion.platform.measure import summarize
from parhelion.types import EngineStats, Prompt, SamplingParams

if TYPE_CHECKING:
    from parhelion.engine.llm import LLM


@dataclass(frozen=True)
class LatencySettings:
    """Lengths in tokens; every prompt length is combined with every output length."""

    prompt_lengths: tuple[int, ...] = (32, 256, 1024)
    output_lengths: tuple[int, ...] = (64,)
    rounds: int = 5
    warmup: int = 1
    seed: int = 0


@dataclass(frozen=True)
class RequestLatency:
    """Seconds until the first token, and seconds for each later one on average (0 if there was only one)."""

    first_token_s: float
    per_token_s: float


def measure_latency(
    llm: LLM, settings: LatencySettings, progress: Callable[[int, int], None] | None = None
) -> list[Measurement]:
    """TTFT and decode time per token for each pair of lengths; and what guesses did, if tokens were guessed."""
    cases = [(prompt, output) for prompt in settings.prompt_lengths for output in settings.output_lengths]
    per_case = settings.warmup + settings.rounds
    results: list[Measurement] = []
    for number, (prompt_length, output_length) in enumerate(cases):
        prompts = random_prompts(
            count=per_case, length=prompt_length, vocab_size=llm.tokenizer.vocab_size, seed=settings.seed + number
        )
        latencies: list[RequestLatency] = []
        counts: list[EngineStats] = []
        for done, prompt in enumerate(prompts, start=1):
            before = llm.stats()
            latencies.append(time_request(llm, prompt, output_length))
            counts.append(llm.stats().since(before))
            if progress is not None:
                progress(number * per_case + done, len(cases) * per_case)
        counted = latencies[settings.warmup :]
        case = f"prompt {prompt_length}, output {output_length}"
        first = summarize([1e3 * latency.first_token_s for latency in counted])
        each = summarize([1e3 * latency.per_token_s for latency in counted])
        results += [Measurement(case, "TTFT", "ms", first), Measurement(case, "decode per token", "ms", each)]
        results += summarize_guesses(case, counts[settings.warmup :])
    return results


def time_request(llm: LLM, prompt: Prompt, output_length: int) -> RequestLatency:
    """Run one greedy request to its full length and time it."""
    params = SamplingParams(temperature=0.0, max_tokens=output_length, ignore_eos=True)
    start = time.perf_counter()
    first = first_count = last = count = 0.0
    for output in llm.stream(prompt, params):
        last, count = time.perf_counter(), len(output.outputs[0].token_ids)
        if not first and count:
            first, first_count = last, count
    later = count - first_count
    return RequestLatency(first - start, (last - first) / later if later else 0.0)
