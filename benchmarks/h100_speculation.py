"""What checking guesses costs and gains on a GPU: TPOT against the share of guesses that is right, and the batch.

The weights are dummies, so which guesses are right is imposed: behind each one, the token that was sampled is replaced
by the guess, or by another one, as often as is asked for. Everything else is the engine's: scheduler, steps, graphs,
``auto``. Guesses are free with ``given``; with ``draft`` a dummy model makes them, with ``head`` an EAGLE-3 head, and
what that takes counts. There the device does the replacing, in the step's graph, since it must know by itself how many
guesses are right: steps are planned ahead. ``--not-ahead`` plans those that check guesses once these are read.

With ``--peer-path`` or ``--peer-python`` vLLM is measured behind that in the same way, with as many of its guesses
right (see ``parhelion/bench/compare/speculation.py``).

    python benchmarks/h100_speculation.py [--model qwen3-8b] [--draft eagle3|qwen3-0.6b] [--pack auto] [--output FILE]
                                          [--peer-path FOLDER] [--peer-python PYTHON]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from parhelion.bench.compare.checkpoint import (
    FP8_PER_TOKEN_CONFIG,
    SHAPES,
    compared_model,
    step_bytes,
    write_config,
    write_head_config,
)
from parhelion.bench.compare.engines import Engine, peer
from parhelion.bench.compare.peer_weights import LIKE_OURS, NOT_TAKEN, PeerWeights
from parhelion.bench.compare.settings import OfflineSettings
from parhelion.bench.compare.speculation import NOTES, PeerBench, measure_peer, ways
from parhelion.bench.machine import describe_circumstances
from parhelion.config import EngineConfig
from parhelion.engine.build_worker import kv_cache_size
from parhelion.engine.core import EngineCore
from parhelion.engine.device import bounds
from parhelion.engine.device import step as device_step
from parhelion.engine.device.worker import DeviceWorker, DeviceWorkerOptions
from parhelion.engine.drafts.choice import read_draft
from parhelion.engine.kv_storage import KVCacheSize
from parhelion.engine.load import load_draft, load_model, needs_tables
from parhelion.engine.messages import AddRequest
from parhelion.engine.step_layout import StepInts
from parhelion.engine.step_result import PendingStep, StepResult
from parhelion.platform.ceilings import measure_ceilings
from parhelion.platform.device import device_name
from parhelion.scheduler import SchedulerConfig, StepPlan
from parhelion.speculative import Drafting, Pace, Speculation, Speculator
from parhelion.types import SamplingParams

RESULT = Path(__file__).parent / "results" / "h100_speculation.json"
BLOCK_SIZE = 16
BUDGET = 4096
SEED = 7
HEAD = "eagle3"
PADDED = ("paged_attention", "fused_qk_norm_rope", "rope_and_cache")


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        draft: makes the guesses: a model's name, or that of a head.
        counts: guesses a request.
        rates: shares of guesses that are right, of those whose turn comes.
        ahead: plan steps before a draft's guesses are read.
    """

    model: str = "qwen3-8b"
    draft: str | None = None
    device: str = "cuda"
    pack: str = "auto"
    input_length: int = 512
    output_length: int = 128
    batches: tuple[int, ...] = (1, 16, 64)
    counts: tuple[int, ...] = (1, 3, 5)
    rates: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    rounds: int = 3
    ahead: bool = True
    peer_timeout_s: float = 500.0

    @property
    def max_model_len(self) -> int:
        return self.input_length + self.output_length + 16


class Anything:
    """A proposer that always has as many guesses as are asked for."""

    def start(self, request_id: str, token_ids: Sequence[int]) -> None:
        return

    def extend(self, request_id: str, token_ids: Sequence[int]) -> None:
        return

    def propose(self, request_id: str, count: int) -> list[int]:
        return list(range(2, 2 + count))

    def forget(self, request_id: str) -> None:
        return


class Coins:
    """Decides on the device which of a worker's guesses are right.

    Args:
        worker: with a draft model or head; none of its graphs may have been captured.
    """

    def __init__(self, worker: DeviceWorker) -> None:
        device = worker._device
        self._stream = worker._stream
        self._draws = torch.zeros(worker._buckets.largest.num_rows, device=device)
        self._rate = torch.zeros((), device=device)
        self._random = torch.Generator(device)

    def set(self, rate: float) -> None:
        """From now on so many are right."""
        with self._stream.activate():
            self._rate.fill_(rate)
        self._random.manual_seed(SEED)

    def toss(self) -> None:
        """Before every step."""
        with self._stream.activate():
            self._draws.uniform_(generator=self._random)

    def count_wrong(
        self, num_wrong: torch.Tensor, ints: StepInts, checked: torch.Tensor, sampled: torch.Tensor
    ) -> None:
        """In place of the step's own: what is sampled before a guess is the guess, or a token beside it."""
        assert ints.guesses_left is not None
        guesses, before = checked[1:], sampled[:-1]
        is_right = self._draws[1 : len(checked)] < self._rate
        imposed = torch.where(is_right, guesses, torch.where(guesses > 0, guesses - 1, guesses + 1))
        before.copy_(torch.where(ints.guesses_left[1:] > 0, imposed, before))
        bounds.count_wrong(num_wrong, ints, checked, sampled)


class Imposed:
    """A worker under which a share of all guesses is right; see the module.

    Args:
        worker: the engine's.
        rate: how many.
        coins: of a worker with a draft model or head.
    """

    def __init__(self, worker: DeviceWorker, rate: float, coins: Coins | None = None) -> None:
        self._worker = worker
        self._rate = rate
        self._coins = coins
        self._random = np.random.default_rng(SEED)
        if coins is not None:
            coins.set(rate)

    def execute(self, plan: StepPlan, admitted: Sequence[AddRequest]) -> PendingStep:
        if self._coins is not None:
            self._coins.toss()
            return self._worker.execute(plan, admitted)
        return _Imposing(self._worker.execute(plan, admitted), plan, self._rate, self._random)


class _Imposing:
    def __init__(self, step: PendingStep, plan: StepPlan, rate: float, random: np.random.Generator) -> None:
        self._step, self._plan, self._rate, self._random = step, plan, rate, random

    def wait(self) -> StepResult:
        result = self._step.wait()
        ids = list(result.token_ids)
        sample = 0
        for row in self._plan.rows:
            for place, guess in enumerate(row.guesses):
                ids[sample + place] = guess if self._random.random() < self._rate else guess + 1
            sample += row.num_samples
        return replace(result, token_ids=ids)


class Bench:
    """The model on its device; a new engine core for every case."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = settings
        self.shape = SHAPES[settings.model]
        self.folders = {settings.model: write_config(self.shape, folder / settings.model, FP8_PER_TOKEN_CONFIG)}
        if settings.draft == HEAD:
            self.folders[HEAD] = write_head_config(self.shape, folder / HEAD)
        elif settings.draft is not None:
            where = folder / settings.draft
            self.folders[settings.draft] = write_config(SHAPES[settings.draft], where, FP8_PER_TOKEN_CONFIG)
        chosen = read_draft(self.folders[settings.draft]) if settings.draft is not None else None
        config = self._config()
        self._model = load_model(config, Path(config.model), keep_tables=needs_tables(chosen))
        self._draft, draft_bytes = load_draft(config, chosen, self._model)
        self.cost = draft_bytes / self._model.weight_bytes
        self.needs_states = settings.draft == HEAD
        self._size = kv_cache_size(config, self._model.model, self._draft)
        self._coins: Coins | None = None

    def _config(self) -> EngineConfig:
        s = self.settings
        return EngineConfig(
            model=str(self.folders[s.model]),
            device=s.device,
            load_format="dummy",
            pack=s.pack,
            max_model_len=s.max_model_len,
            max_num_seqs=max(s.batches),
            # Not all that is free: a peer has its own.
            kv_cache_memory=16 << 30 if s.device != "cpu" else 64 << 20,
            # On a CPU these have no provider for padded steps but the reference.
            kernels=() if s.device != "cpu" else tuple(f"{op}=reference" for op in PADDED),
        )

    def worker(self, num_guesses: int, drafts: bool) -> DeviceWorker:
        """A worker whose rows may check so many guesses."""
        options = DeviceWorkerOptions(
            BLOCK_SIZE, max(self.settings.batches), BUDGET, self.settings.device != "cpu", num_guesses
        )
        draft = self._draft if drafts else None
        worker = DeviceWorker(self._model.model, self._size, options, self._model.resolver, draft)
        if drafts:
            self._coins = Coins(worker)
            device_step.count_wrong = self._coins.count_wrong  # type: ignore[assignment]
        worker.warm_up()
        # As the peer does when it starts: no round then waits for a graph that the rounds before did not need.
        worker.capture_all()
        return worker

    def core(self, worker: DeviceWorker, rate: float, speculator: Speculator | None) -> EngineCore:
        limits = SchedulerConfig(
            num_blocks=self.size.num_blocks,
            block_size=BLOCK_SIZE,
            max_num_seqs=max(self.settings.batches),
            max_num_batched_tokens=BUDGET,
            max_model_len=self.size.max_model_len,
            enable_prefix_caching=False,
        )
        coins = self._coins if worker._drafter is not None else None
        # As in an engine, whose thread stays on its worker's stream.
        thread = ThreadPoolExecutor(1, thread_name_prefix="worker", initializer=worker.stay)
        return EngineCore(limits, Imposed(worker, rate, coins), speculation=speculator, thread=thread)

    @property
    def size(self) -> KVCacheSize:
        return self._size


def tpot_ms(core: EngineCore, settings: Settings, batch: int, round_number: int) -> float:
    """Milliseconds a token of one request, from when all have their first token until the first one has its last."""
    prompts = np.random.default_rng(round_number).integers(2, 400, (batch, settings.input_length))
    for row, prompt in enumerate(prompts.tolist()):
        core.add(
            AddRequest(
                request_id=f"{round_number}-{row}",
                prompt_token_ids=prompt,
                params=SamplingParams(temperature=0.0, max_tokens=settings.output_length, ignore_eos=True),
                seed=0,
                stop_token_ids=[],
                max_tokens=settings.output_length,
                priority=0,
                arrival=float(row),
            )
        )
    begun: set[str] = set()
    gained, started, measured = 0, None, None
    while core.has_work:
        outputs = core.step()
        if started is not None and measured is None:
            gained += len(outputs)
            if any(output.finish_reason is not None for output in outputs):
                measured = time.perf_counter() - started
        begun |= {output.request_id for output in outputs}
        if started is None and len(begun) == batch:
            started = time.perf_counter()
    assert measured is not None
    return measured / gained * batch * 1e3


def cases(bench: Bench) -> Iterator[tuple[str, int, float | None, Speculator | None]]:
    """Name of the way, guesses, imposed share, and who guesses."""
    s = bench.settings
    yield "off", 0, None, None
    drafting = () if s.draft is None else ("head" if s.draft == HEAD else "draft",)
    for way in ("given", *drafting):
        for count in s.counts:
            for rate in s.rates:
                yield way, count, rate, _speculator(bench, way, count, None)
        for rate in (0.0, *s.rates):
            yield f"{way}, auto", max(s.counts), rate, _speculator(bench, way, max(s.counts), Pace())


def _speculator(bench: Bench, way: str, count: int, pace: Pace | None) -> Speculator:
    if way == "given":
        return Speculation(Anything(), count, pace)
    return Drafting(count, bench.cost, pace, bench.needs_states, bench.settings.ahead)


def measure(settings: Settings, folder: Path, vllm: Engine | None, scratch: Path) -> Iterator[dict[str, Any]]:
    """A row for each case and batch, of vLLM too if it is there; a case that fails says why."""
    bench = Bench(settings, folder)
    bandwidth = measure_ceilings(torch.device(settings.device)).bandwidth

    def floor_ms(batch: int) -> float:
        context = settings.input_length + settings.output_length // 2
        return step_bytes(bench.shape, batch, context) / bandwidth * 1e3

    yield from _measure_ours(bench, floor_ms)
    if vllm is None:
        return
    peer_settings = OfflineSettings(
        batches=settings.batches,
        input_length=settings.input_length,
        output_length=settings.output_length,
        rounds=settings.rounds,
        device=settings.device,
        max_num_batched_tokens=BUDGET,
        timeout_s=settings.peer_timeout_s,
    )
    model = compared_model(settings.model, folder)
    peer_bench = PeerBench(
        vllm, model, peer_settings, settings.rates, floor_ms, scratch, lambda text: print(text, flush=True)
    )
    yield from measure_peer(peer_bench, ways(settings.counts, bench.folders.get(HEAD)))


def _measure_ours(bench: Bench, floor_ms: Callable[[int], float]) -> Iterator[dict[str, Any]]:
    settings = bench.settings
    workers = {drafts: bench.worker(max(settings.counts), drafts) for drafts in {False, settings.draft is not None}}
    for batch in settings.batches:
        plain = 0.0
        for way, count, rate, speculator in cases(bench):
            about = {"engine": "parhelion", "model": settings.model, "batch": batch}
            about |= {"way": way, "guesses": count, "imposed": rate}
            try:
                core = bench.core(workers[way.startswith(("draft", "head"))], rate or 0.0, speculator)
                try:
                    # The first round captures graphs and lets auto learn.
                    times = [tpot_ms(core, settings, batch, number) for number in range(settings.rounds + 1)][1:]
                    stats = core.stats()
                finally:
                    core.close()
            except Exception:
                yield about | {"failed": traceback.format_exc(limit=3)}
                continue
            median = statistics.median(times)
            plain = median if way == "off" else plain
            yield about | {
                "tpot_ms": median,
                "tpot_ms_range": [min(times), max(times)],
                "floor_ms": floor_ms(batch),
                "gain": plain / median,
                "acceptance_rate": stats.acceptance_rate,
                "mean_accepted_length": stats.mean_accepted_length,
                "told_gain": stats.speculation_gain,
            }


def main() -> None:
    """Parse the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    d = Settings()
    parser.add_argument("--model", default=d.model, choices=SHAPES)
    parser.add_argument("--draft", choices=(HEAD, *SHAPES))
    parser.add_argument("--device", default=d.device)
    parser.add_argument("--pack", default=d.pack)
    parser.add_argument("--batches", default=",".join(map(str, d.batches)))
    parser.add_argument("--counts", default=",".join(map(str, d.counts)))
    parser.add_argument("--rates", default=",".join(map(str, d.rates)), help="shares of guesses that are right")
    parser.add_argument("--input-length", type=int, default=d.input_length)
    parser.add_argument("--output-length", type=int, default=d.output_length)
    parser.add_argument("--rounds", type=int, default=d.rounds)
    parser.add_argument("--not-ahead", action="store_true", help="read a draft's guesses before the next step's plan")
    parser.add_argument("--peer-path", help="folders for the PYTHONPATH of a vLLM to measure as well")
    parser.add_argument("--peer-python", help="its Python; this one if left out")
    parser.add_argument("--peer-timeout", type=float, default=d.peer_timeout_s, help="seconds to start")
    parser.add_argument("--output", type=Path, default=RESULT)
    o = parser.parse_args()
    settings = Settings(
        model=o.model,
        draft=o.draft,
        device=o.device,
        pack=o.pack,
        input_length=o.input_length,
        output_length=o.output_length,
        batches=tuple(map(int, o.batches.split(","))),
        counts=tuple(map(int, o.counts.split(","))),
        rates=tuple(map(float, o.rates.split(","))),
        rounds=o.rounds,
        ahead=not o.not_ahead,
        peer_timeout_s=o.peer_timeout,
    )
    results: dict[str, Any] = {
        "benchmark": "h100_speculation",
        "device": device_name(torch.device(settings.device)),
        "circumstances": describe_circumstances(),
        "settings": settings,
    }
    rows: list[dict[str, Any]] = []
    scratch = o.output.with_name(f"{o.output.stem}-logs")
    with tempfile.TemporaryDirectory() as folder:
        vllm, weights = None, None
        if o.peer_path is not None or o.peer_python is not None:
            weights = PeerWeights(Path(folder) / "weights")
            vllm = weights.given_to(peer("vllm", o.peer_python, o.peer_path))
            results["notes"] = [*NOTES, LIKE_OURS]
        for row in measure(settings, Path(folder), vllm, scratch):
            rows.append(row)
            print(_told(row), flush=True)
            # The run may be cut short: each row is written as soon as it is known.
            _write(o.output, results | {"rows": rows})
        if weights is not None and not weights.were_taken:
            results["notes"].append(NOT_TAKEN)
            _write(o.output, results | {"rows": rows})


def _told(row: dict[str, Any]) -> str:
    case = f"{row['engine']}, batch {row['batch']:3} {row['way']:12} {row['guesses']} guesses"
    if "failed" in row:
        return f"{case}, imposed {row['imposed']}: {row['failed']}"
    gain = "" if row["gain"] is None else f", {row['gain']:.2f}x"
    return f"{case}, imposed {row['imposed'] or 0:.1f}: {row['tpot_ms']:7.2f} ms{gain}"


def _write(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")


if __name__ == "__main__":
    main()
