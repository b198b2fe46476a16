"""Many requests handed over at once: how many tokens a second come out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from parhelion.bench.report import Measurement
from parhelion.bench.speculation import summarize_guesses
from parhelion.bench.workload import random_prompts
from parhelion.platform.measure import summarize
from parhelion.types import EngineStats, SamplingParams

if TYPE_CHECKING:
    from parhelion.engine.llm import LLM


@dataclass(frozen=True)
class ThroughputSettings:
    """Lengths in tokens. Each round hands over ``num_requests`` requests at once."""

    num_requests: int = 64
    prompt_length: int = 128
    output_length: int = 64
    rounds: int = 3
    warmup: int = 1
    seed: int = 0


def measure_throughput(
    llm: LLM, settings: ThroughputSettings, progress: Callable[[int, int], None] | None = None
) -> list[Measurement]:
    """Requests, generated tokens and all tokens a second, over the rounds; and what guesses did, if there were any."""
    params = SamplingParams(temperature=0.0, max_tokens=settings.output_length, ignore_eos=True)
    total_rounds = settings.warmup + settings.rounds
    rounds_s: list[float] = []
    counts: list[EngineStats] = []
    for number in range(total_rounds):
        prompts = random_prompts(
            count=settings.num_requests,
            length=settings.prompt_length,
            vocab_size=llm.tokenizer.vocab_size,
            seed=settings.seed + number,
        )
        num_done = number * settings.num_requests

        def show(done: int, _total: int, num_done: int = num_done) -> None:
            if progress is not None:
                progress(num_done + done, total_rounds * settings.num_requests)

        before = llm.stats()
        start = time.perf_counter()
        llm.generate(prompts, params, progress=show)
        rounds_s.append(time.perf_counter() - start)
        counts.append(llm.stats().since(before))
    counted = rounds_s[settings.warmup :]
    case = f"{settings.num_requests} requests, prompt {settings.prompt_length}, output {settings.output_length}"
    generated = settings.num_requests * settings.output_length
    taken = settings.num_requests * settings.prompt_length
    return [
        Measurement(case, "requests", "1/s", summarize([settings.num_requests / s for s in counted])),
        Measurement(case, "generated tokens", "1/s", summarize([generated / s for s in counted])),
        Measurement(case, "all tokens", "1/s", summarize([(generated + taken) / s for s in counted])),
        *summarize_guesses(case, counts[settings.warmup :]),
    ]
