"""Engines side by side without a server: cold start, prefill, time per output token, memory; round by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from parhelion.bench.compare.checkpoint import ComparedModel, kv_bytes_per_token
from parhelion.bench.compare.device import MemoryMeter, Probe
from parhelion.bench.compare.driver import Launch, Runner, RunnerError
from parhelion.bench.compare.engines import Engine
from parhelion.bench.compare.protocol import EngineFacts, Generate, Generated, Info, Load, Loaded
from parhelion.bench.compare.results import EngineRow, Recorder, Sample, make_row
from parhelion.bench.compare.settings import OfflineSettings

# Of the device, while another engine may already have as much and some more: under a half.
_MEMORY_SHARE = 0.45

Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """What all steps need.

    Attributes:
        logs: a folder for the runners' logs.
        say: told what is going on, a sentence at a time.
    """

    model: ComparedModel
    settings: OfflineSettings
    probe: Probe
    meter: MemoryMeter
    recorder: Recorder
    logs: Path
    say: Say


@dataclass
class Contestant:
    """An engine that is alive, and what is known of it so far."""

    engine: Engine
    runner: Runner
    row: EngineRow
    held_bytes: int = 0


def compare_offline(engines: Sequence[Engine], bench: Bench) -> None:
    """Measure a model. An engine that fails is given up with its error recorded; the others go on."""
    samples: dict[int, dict[str, list[Sample]]] = {
        batch: {engine.name: [] for engine in engines} for batch in bench.settings.batches
    }
    groups = [[engine] for engine in engines] if bench.settings.sequential else [list(engines)]
    for group in groups:
        alive: list[Contestant] = []
        try:
            for engine in group:
                _load(engine, bench, alive)
            for batch in bench.settings.batches:
                _measure_batch(alive, batch, bench, samples[batch])
        except BaseException:
            # Interrupted: a runner that is busy would be long in quitting.
            for contestant in alive:
                contestant.runner.kill()
            raise
        for contestant in alive:
            contestant.runner.close()


def kv_cache_bytes(model: ComparedModel, settings: OfflineSettings, sequences: int, on_gpu: bool) -> int:
    """What so many sequences need at once, the same for every engine. On a CPU the cache may be in float32."""
    return settings.kv_tokens(sequences) * kv_bytes_per_token(model.shape, 2 if on_gpu else 4)


def load_request(bench: Bench) -> Load:
    """What every engine is told."""
    settings, model = bench.settings, bench.model
    sequences, on_gpu = max(settings.batches), bench.probe.kind == "cuda"
    return Load(
        model=str(model.folder),
        load_format=model.load_format,
        device=bench.probe.kind,
        vocab_size=model.shape.vocab_size,
        max_model_len=settings.max_model_len,
        max_num_seqs=sequences,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_memory=kv_cache_bytes(model, settings, sequences, on_gpu),
        memory_share=_MEMORY_SHARE,
        seed=settings.seed,
        pack=settings.pack,
        graphs=settings.graphs if on_gpu else "lazy",
    )


def _load(engine: Engine, bench: Bench, alive: list[Contestant]) -> None:
    """Start an engine and bring it to its first token; one that fails is recorded and left out."""
    row = EngineRow(bench.model.name, engine.name)
    before = bench.meter.used_bytes()
    bench.say(f"{bench.model.name}: {engine.name} starts")
    log = bench.logs / f"{bench.model.name}-{engine.name}.log"
    try:
        runner = Runner(Launch(engine.name, engine.runner, log, engine.environment))
    except RunnerError as error:
        _give_up(bench, row, error)
        return
    contestant = Contestant(engine, runner, row)
    alive.append(contestant)
    try:
        loaded = runner.ask(load_request(bench), Loaded, bench.settings.timeout_s)
        ready_s = runner.elapsed_s()
        runner.ask(
            Generate(1, bench.settings.input_length, 1, bench.settings.seed), Generated, bench.settings.timeout_s
        )
        first_token_s = runner.elapsed_s()
        facts = runner.ask(Info(), EngineFacts, bench.settings.timeout_s)
    except RunnerError as error:
        runner.kill()
        alive.remove(contestant)
        _give_up(bench, row, error)
        return
    contestant.row = replace(
        row,
        import_s=ready_s - loaded.load_s,
        load_s=loaded.load_s,
        ready_s=ready_s,
        first_token_s=first_token_s,
        kv_cache_gib=None if facts.kv_cache_bytes is None else facts.kv_cache_bytes / (1 << 30),
        facts=facts,
    )
    _account(contestant, bench, before)


def _measure_batch(alive: list[Contestant], batch: int, bench: Bench, samples: dict[str, list[Sample]]) -> None:
    """All rounds of a batch size: A, B, A, B, ...; round 0 warms up and is not counted."""
    for number in range(bench.settings.rounds + 1):
        bench.say(f"{bench.model.name}: batch {batch}, round {number} of {bench.settings.rounds}")
        for contestant in list(alive):
            before = bench.meter.used_bytes()
            try:
                sample = _turn(contestant, batch, number, bench)
            except RunnerError as error:
                contestant.runner.kill()
                alive.remove(contestant)
                _give_up(bench, contestant.row, error)
                continue
            _account(contestant, bench, before)
            if number:
                samples[contestant.engine.name].append(sample)
    floor_bytes = bench.model.floor_bytes(batch, bench.settings.mean_context)
    floor_s = None if floor_bytes is None else floor_bytes / bench.probe.bandwidth
    prefill_floor_s = bench.model.prefill_floor_s(batch, bench.settings.input_length, bench.probe)
    row = make_row(bench.model.name, batch, bench.settings, floor_s, samples, prefill_floor_s)
    bench.recorder.put_row(row)


def _turn(contestant: Contestant, batch: int, number: int, bench: Bench) -> Sample:
    """One token a prompt, then all of them, with the same prompts; the seed is the round's, whoever's turn it is."""
    settings = bench.settings
    seed = settings.seed + 1000 * batch + number
    first, whole = (
        contestant.runner.ask(Generate(batch, settings.input_length, length, seed), Generated, settings.timeout_s)
        for length in (1, settings.output_length)
    )
    return Sample(first.seconds, whole.seconds, first.tokens, whole.tokens, whole.prompt_checksum)


def _account(contestant: Contestant, bench: Bench, before: int | None) -> None:
    """Charge what the device's memory in use grew by to the engine whose turn it was."""
    after = bench.meter.used_bytes()
    if before is not None and after is not None:
        # Memory of an engine that was just given up may be returned during another's turn.
        contestant.held_bytes += max(0, after - before)
        contestant.row = replace(contestant.row, peak_gib=contestant.held_bytes / (1 << 30))
    bench.recorder.put_engine(contestant.row)


def _give_up(bench: Bench, row: EngineRow, error: RunnerError) -> None:
    bench.say(str(error))
    bench.recorder.put_engine(replace(row, error=str(error)))
