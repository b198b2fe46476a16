"""Speed of one rank and of two, what of it is collectives, and what the planner said of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from h100_engine import measure_batch
from plan_check import predicted

from parhelion import LLM, SamplingParams
from parhelion.bench.compare.checkpoint import FP8_PER_TOKEN_CONFIG, SHAPES, step_bytes, write_config
from parhelion.errors import ParhelionError
from parhelion.platform.ceilings import measure_ceilings
from parhelion.types import TokensPrompt

BESIDE_TOKENS = 64
"""Of the prompt whose log-probabilities both numbers of ranks tell."""


@dataclass(frozen=True)
class SpeedOptions:
    """What is measured.

    Attributes:
        model: a name of ``SHAPES``; its weights are dummies in FP8.
        device: of the first rank. pack: as of the engine.
        batches, input_len, output_len, rounds: of the workload.
    """

    model: str
    device: str
    pack: str
    batches: tuple[int, ...]
    input_len: int
    output_len: int
    rounds: int


def speed(folder: Path, options: SpeedOptions, tp: int, pp: int = 1, overlap: bool = True) -> Iterator[dict[str, Any]]:
    """A row a batch, then what the engine is and holds, then log-probabilities of one prompt."""
    o, shape = options, SHAPES[options.model]
    bandwidth = None if o.device == "cpu" else measure_ceilings(torch.device(o.device)).bandwidth
    started = time.monotonic()
    sizes: dict[str, int] = {"tp": tp} if pp == 1 else {"tp": tp, "pp": pp}
    if not overlap:
        sizes["overlap"] = False
    with _engine(folder, o, sizes) as llm:
        cold_start_s = time.monotonic() - started
        for batch in o.batches:
            # What each rank reads is its share of all but the sums. A token passes all stages, with those of its step.
            read = step_bytes(shape, -(-batch // pp), o.input_len + o.output_len // 2) / tp
            floor_ms = None if bandwidth is None else 1e3 * read / bandwidth
            row = measure_batch(llm, o.model, batch, o.input_len, o.output_len, o.rounds)
            yield {"what": "speed", **sizes, "pack": llm.info.pack, "floor_ms": floor_ms} | row
        info, stats = llm.info, llm.stats()
        yield {
            "what": "engine",
            **sizes,
            "cold_start_s": cold_start_s,
            "load_s": info.load_s,
            "phases": {phase.name: phase.seconds for phase in info.phases},
            "pack": info.pack,
            "kernels": info.kernels,
            "notes": info.kernel_notes,
            "launches_per_layer": info.launches_per_layer,
            "weight_bytes": info.weight_bytes,
            "kv_cache_bytes": info.kv_cache_bytes,
            "num_blocks": info.num_blocks,
            "graphs_captured": stats.num_graphs,
            "graph_bytes": stats.graph_bytes,
            "graph_s": info.graph_s,
            "peak_allocated_bytes": torch.cuda.max_memory_allocated() if o.device != "cpu" else None,
            "used_bytes": used_bytes(),
            "passed": (info.tp, info.pp) == (tp, pp),
        }
        yield {"what": "logprobs", **sizes, "logprobs": _logprobs(llm), "passed": True}


def without_collectives(folder: Path, options: SpeedOptions) -> Iterator[dict[str, Any]]:
    """Two ranks that exchange nothing: what a step takes beside its collectives."""
    from tp_silence import silence

    silence()
    with _engine(folder, options, {"tp": 2}) as llm:
        for batch in options.batches:
            row = measure_batch(llm, options.model, batch, options.input_len, options.output_len, options.rounds)
            yield {"what": "without collectives", "tp": 2} | row


def beside(folder: Path, options: SpeedOptions, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What was measured of one rank and of two, side by side, with what the planner says of each."""
    measured = {(row["tp"], row["batch"]): row for row in rows if row["what"] == "speed"}
    silent = {row["batch"]: row for row in rows if row["what"] == "without collectives"}
    told = {row["tp"]: torch.tensor(row["logprobs"]) for row in rows if row["what"] == "logprobs"}
    for (tp, batch), row in measured.items():
        one = measured.get((1, batch))
        found: dict[str, Any] = {"what": "beside", "tp": tp, "batch": batch, "passed": True}
        if one is not None:
            found["tpot_speedup"] = one["tpot_ms"] / row["tpot_ms"]
            found["prefill_speedup"] = one["prefill_ms"] / row["prefill_ms"]
        if tp == 2 and batch in silent:
            found["collectives_of_tpot"] = 1 - silent[batch]["tpot_ms"] / row["tpot_ms"]
        try:
            found |= _planned(folder, options, row)
        except ParhelionError as error:
            found["plan_error"] = str(error)
        yield found
    if {1, 2} <= told.keys():
        apart = (told[2] - told[1]).abs()
        spread = (told[1] - told[1].mean()).norm()
        yield {
            "what": "logprobs beside",
            "median_apart": float(apart.median()),
            "largest_apart": float(apart.max()),
            "relative_error": float((told[2] - told[1]).norm() / spread),
            "passed": bool(torch.isfinite(apart).all()),
        }


def _planned(folder: Path, options: SpeedOptions, row: dict[str, Any]) -> dict[str, Any]:
    from parhelion.cli.plan_report import planned_time
    from parhelion.cli.planned_model import known_times, model_size
    from parhelion.distributed.devices import PRESETS
    from parhelion.platform.device import choose_device, device_name
    from parhelion.tuning.model_calls import tuned_model

    where = str(_written(folder, options.model))
    model = tuned_model(where)
    here = device_name(choose_device(options.device))
    preset = next((each.name for each in PRESETS if each.device == here), "h200")
    known = known_times(preset, row["pack"] or "off")
    times = predicted(
        (model, model_size(model, where)), known, row["tp"], row["batch"], options.input_len, options.output_len
    )
    found: dict[str, Any] = {"plan_device": preset, "plan_pack": known.pack}
    for name, time_ in zip(("tpot", "prefill"), map(planned_time, times), strict=True):
        found |= {
            f"{name}_predicted_ms": time_.ms,
            f"{name}_off": time_.ms / row[f"{name}_ms"] - 1,
            f"{name}_links_ms": time_.links * time_.ms,
        }
    return found


def _engine(folder: Path, options: SpeedOptions, sizes: dict[str, int]) -> LLM:
    where = _written(folder, options.model)
    limits: dict[str, Any] = {
        "max_model_len": max(options.input_len + options.output_len, BESIDE_TOKENS) + 64,
        "max_num_seqs": max(options.batches),
        "enable_prefix_caching": False,
    }
    if options.device == "cpu":
        limits["kv_cache_memory"] = 16 << 20
    return LLM(str(where), device=options.device, load_format="dummy", pack=options.pack, **sizes, **limits)


def _written(folder: Path, model: str) -> Path:
    return write_config(SHAPES[model], folder / model, FP8_PER_TOKEN_CONFIG)


def _logprobs(llm: LLM) -> list[float]:
    """Of the tokens of a prompt."""
    ids = torch.randint(2, 1000, (BESIDE_TOKENS,), generator=torch.Generator().manual_seed(3)).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, ignore_eos=True)
    [output] = llm.generate([TokensPrompt(prompt_token_ids=ids)], params)
    told = output.prompt_logprobs or []
    return [next(iter(each.values())).logprob for each in told if each is not None]


def used_bytes() -> list[int] | None:
    """Memory in use on every GPU, whoever uses it, as the driver says; None without one."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        return [int(line) << 20 for line in lines]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
