"""What the device does in a decode step: the time of every kernel, and where it waits.

    PYTHONPATH=. python benchmarks/step_trace.py --models qwen3-8b --pack auto --batches 1,16,64,256 [--output FILE]

Dummy FP8 weights, 512 tokens in, greedy; steps of all requests together, traced by torch's profiler, which slows the
host, so what counts is the kernels' times and, with large batches, whether the device waits at all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from gpu_step_tables import LONG_GAP_US
from h100_engine import SHAPES

from parhelion import LLM, SamplingParams
from parhelion.bench.compare.checkpoint import FP8_PER_TOKEN_CONFIG, write_config
from parhelion.bench.machine import command_line, describe_circumstances
from parhelion.platform.device import device_name
from parhelion.types import TokensPrompt

RESULT = Path(__file__).parent / "results" / "step_trace.json"

STEPS = 8
"""Steps that are looked at, with all requests answering."""

LAST_KERNEL = "argmax_chunks"
"""What a greedy step ends with, or nearly so, as part of its kernel's name."""

PROMPT = 512

PROMPT_STEP = 4096
"""Tokens of prompts that a step takes at most."""


@dataclass(frozen=True)
class Event:
    """Something on the device; microseconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class StepTrace:
    """The mean of some steps, in microseconds.

    Attributes:
        step_us: from the end of a step's last kernel to the end of the next one's.
        idle_us: of that, while nothing ran on the device.
        kernels: name to launches a step and their time; kernels that overlap count twice.
        gaps: the longest: what ran before, what after, how often a step and how long.
    """

    step_us: float
    idle_us: float
    kernels: dict[str, tuple[float, float]]
    gaps: list[tuple[str, str, float, float]]


def device_events(trace: dict[str, Any]) -> list[Event]:
    """Kernels and copies of a Chrome trace, by their start."""
    found = []
    for event in trace["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
            name = event["name"]
            if event["cat"] == "kernel":
                name = f"{name[:60]} {event['args'].get('grid')}"
            found.append(Event(name, event["ts"], event["ts"] + event["dur"]))
    return sorted(found, key=lambda event: event.start)


def steps_after(events: list[Event], first: int, steps: int) -> StepTrace:
    """So many steps behind the ``first`` ones.

    Raises:
        ValueError: there are not so many.
    """
    ends = [event.end for event in events if LAST_KERNEL in event.name]
    if len(ends) <= first + steps:
        raise ValueError(f"{len(ends)} steps were traced, {first + steps + 1} are needed")
    begin, end = ends[first], ends[first + steps]
    inside = [event for event in events if begin < event.end <= end]
    times: dict[str, list[float]] = defaultdict(list)
    gaps: dict[tuple[str, str], list[float]] = defaultdict(list)
    idle, until, before = 0.0, begin, LAST_KERNEL
    for event in inside:
        times[event.name].append(event.end - event.start)
        gap = event.start - until
        if gap > 0:
            idle += gap
            if gap >= LONG_GAP_US:
                gaps[before, event.name].append(gap)
        if event.end > until:
            until, before = event.end, event.name
    longest = sorted(gaps.items(), key=lambda item: -sum(item[1]))[:12]
    return StepTrace(
        step_us=(end - begin) / steps,
        idle_us=idle / steps,
        kernels={
            name: (len(own) / steps, sum(own) / steps) for name, own in sorted(times.items(), key=lambda i: -sum(i[1]))
        },
        gaps=[(*names, len(own) / steps, sum(own) / steps) for names, own in longest],
    )


def traced(llm: LLM, batch: int) -> StepTrace:
    """Trace a generation of this many requests."""
    generator = torch.Generator().manual_seed(8)

    def run(tokens: int) -> None:
        ids = [torch.randint(2, 100000, (PROMPT,), generator=generator).tolist() for _ in range(batch)]
        prompts = [TokensPrompt(prompt_token_ids=each) for each in ids]
        llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True))

    # The first request must still answer when the last one's prompt has been read, and for as long as is looked at.
    prompt_steps = -(-batch * PROMPT // (PROMPT_STEP - batch))
    tokens = prompt_steps + 2 * STEPS
    run(tokens)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        run(tokens)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return steps_after(device_events(json.loads(path.read_text())), prompt_steps + STEPS // 2, STEPS)


def main() -> None:
    """Trace and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SHAPES), help="separated by commas")
    parser.add_argument("--pack", default="auto")
    parser.add_argument("--batches", default="1,16,64,256")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here to trace")
    report: dict[str, Any] = {
        "device": device_name(torch.device("cuda")),
        "command": command_line(sys.argv),
        "circumstances": asdict(describe_circumstances()),
        "pack": options.pack,
        "models": {},
    }
    for name in options.models.split(","):
        steps = report["models"][name] = {}
        with tempfile.TemporaryDirectory() as folder:
            where = write_config(SHAPES[name], Path(folder) / name, FP8_PER_TOKEN_CONFIG)
            limits: dict[str, Any] = {"max_model_len": 1024, "max_num_seqs": 256, "enable_prefix_caching": False}
            with LLM(str(where), device="cuda", load_format="dummy", pack=options.pack, **limits) as llm:
                for batch in map(int, options.batches.split(",")):
                    found = traced(llm, batch)
                    steps[batch] = asdict(found)
                    options.output.write_text(json.dumps(report, indent=1))
                    print(name, end=" ")
                    show(batch, found)


def show(batch: int, found: StepTrace) -> None:
    """A short table."""
    print(f"batch {batch}: step {found.step_us:.0f} us, idle {found.idle_us:.0f} us")
    for name, (count, microseconds) in list(found.kernels.items())[:16]:
        print(f"  {microseconds:8.1f} us {count:6.1f} x {microseconds / count:7.2f}  {name}")
    for before, after, count, microseconds in found.gaps[:6]:
        print(f"  gap {microseconds:7.1f} us in {count:.1f}: {before} -> {after}", flush=True)


if __name__ == "__main__":
    main()
