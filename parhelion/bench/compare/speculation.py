"""vLLM's part of ``benchmarks/h100_speculation.py``: its time per output token while as many of its guesses count as it
is told. vLLM has that built in: with ``rejection_sample_method`` "synthetic" a guess counts by chance, whatever it is.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parhelion.bench.compare.checkpoint import ComparedModel, kv_bytes_per_token
from parhelion.bench.compare.driver import Launch, Runner, RunnerError
from parhelion.bench.compare.engines import RUNNER, Engine
from parhelion.bench.compare.protocol import Decode, Decoded, EngineFacts, Info, Load, Loaded
from parhelion.bench.compare.settings import OfflineSettings

_MEMORY_SHARE = 0.1
"""Of the device, which is free for each of some engines as their KV caches are given: that of the weights, about."""

_FIRST_RATE = 0.5
"""Until another one is imposed."""

NOTES = (
    "vLLM's guesses count by chance as well (rejection_sample_method synthetic). Those that cost nothing come from a "
    "custom proposer, with which vLLM plans no step ahead and takes its older model runner, by its own choice.",
    "Where a head guesses, it is one of EAGLE-3 with a layer of dummy weights in bfloat16 and 32000 tokens of "
    "vocabulary; its passes are part of the time, in both engines.",
    "Times are from when all requests have a token until one has all, in both; Parhelion's are those of its engine's "
    "steps, vLLM's those of its LLMEngine's, whose steps run in another process.",
)


@dataclass(frozen=True)
class Way:
    """How vLLM guesses.

    Attributes:
        name: ``off``, ``given`` or ``head``, as ``h100_speculation.py`` has them.
        count: guesses a request.
        options: more for its ``speculative_config``: the method, and where the guesses come from.
    """

    name: str
    count: int = 0
    options: tuple[tuple[str, str], ...] = ()

    def speculative_config(self) -> dict[str, Any] | None:
        """What ``vllm.LLM`` is given."""
        if not self.count:
            return None
        # Rates are those of all guesses up to a place together.
        rates = [_FIRST_RATE**place for place in range(1, self.count + 1)]
        return {
            **dict(self.options),
            "num_speculative_tokens": self.count,
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_rates": rates,
        }


def ways(counts: Sequence[int], head: Path | None) -> list[Way]:
    """Without guesses, with such that cost nothing, and with those of a head, if there is one."""
    given = (("method", "custom_class"), ("model", "vllm_speculation.AlwaysGuesses"))
    found = [Way("off"), *(Way("given", count, given) for count in counts)]
    if head is not None:
        found += [Way("head", count, (("method", "eagle3"), ("model", str(head)))) for count in counts]
    return found


@dataclass(frozen=True)
class PeerBench:
    """What is measured, and with what.

    Attributes:
        rates: shares of guesses that count, of those whose turn comes.
        floor_ms: of a step of so many requests.
        scratch: a folder for logs and for what vLLM compiles.
        say: told what is going on.
    """

    engine: Engine
    model: ComparedModel
    settings: OfflineSettings
    rates: Sequence[float]
    floor_ms: Callable[[int], float]
    scratch: Path
    say: Callable[[str], None]


def measure_peer(bench: PeerBench, chosen: Sequence[Way]) -> Iterator[dict[str, Any]]:
    """A row for each way, batch and rate, like those of ``h100_speculation.py``; what fails says why."""
    bench.say(f"{bench.engine.name} starts {len(chosen)} times at once, which takes minutes")
    with _started(bench, chosen) as engines:
        for batch in bench.settings.batches:
            plain_ms: float | None = None
            for number, way in enumerate(chosen):
                for rate in bench.rates if way.count else (None,):
                    about = {"engine": bench.engine.name, "model": bench.model.name, "batch": batch}
                    about |= {"way": way.name, "guesses": way.count, "imposed": rate}
                    try:
                        found = _measure(engines[number], bench, way, batch, rate)
                    except RunnerError as error:
                        yield about | {"failed": str(error)}
                        engines[number] = error
                        continue
                    if way.name == "off":
                        plain_ms = found["tpot_ms"]
                    yield about | found | {"gain": None if plain_ms is None else plain_ms / found["tpot_ms"]}


@contextmanager
def _started(bench: PeerBench, chosen: Sequence[Way]) -> Iterator[list[Runner | RunnerError]]:
    """An engine for each way, or why there is none. All start at once and stay alive; one works at a time."""
    alive: list[Runner] = []
    try:
        with ThreadPoolExecutor(len(chosen)) as threads:
            try:
                engines = list(threads.map(lambda way: _start(bench, way, alive), chosen))
            except BaseException:
                # The threads wait for what these answer.
                _kill(alive)
                raise
        yield engines
    except BaseException:
        _kill(alive)
        raise
    for runner in alive:
        runner.close()


def _kill(runners: Sequence[Runner]) -> None:
    for runner in runners:
        runner.kill()


def _start(bench: PeerBench, way: Way, alive: list[Runner]) -> Runner | RunnerError:
    """An engine that has loaded, or why it has not."""
    name = f"{way.name}-{way.count}"
    environment = dict(bench.engine.environment)
    inherited = environment.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(RUNNER.parent), inherited]))
    # What several compile at once into one folder, one might read half written.
    environment["VLLM_CACHE_ROOT"] = str(bench.scratch / f"cache-{name}")
    try:
        runner = Runner(Launch(bench.engine.name, bench.engine.runner, bench.scratch / f"{name}.log", environment))
        alive.append(runner)
        runner.ask(_load_request(bench, way), Loaded, bench.settings.timeout_s)
    except RunnerError as error:
        return error
    bench.say(f"{bench.engine.name}, {way.name}, {way.count} guesses: ready after {runner.elapsed_s():.0f} s")
    return runner


def _load_request(bench: PeerBench, way: Way) -> Load:
    settings, sequences = bench.settings, max(bench.settings.batches)
    # A head's layer has keys and values too, and guesses need room before they are known to be right.
    kv_bytes = 2 * settings.kv_tokens(sequences) * kv_bytes_per_token(bench.model.shape)
    return Load(
        model=str(bench.model.folder),
        load_format=bench.model.load_format,
        device=settings.device,
        vocab_size=bench.model.shape.vocab_size,
        max_model_len=settings.max_model_len,
        max_num_seqs=sequences,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        kv_cache_memory=kv_bytes,
        memory_share=_MEMORY_SHARE,
        seed=settings.seed,
        pack="",
        graphs="",
        guessing=way.speculative_config(),
    )


def _measure(
    runner: Runner | RunnerError, bench: PeerBench, way: Way, batch: int, rate: float | None
) -> dict[str, Any]:
    """All rounds of a case; the first one warms up and is not counted.

    Raises:
        RunnerError: the engine has failed, now or before.
    """
    if isinstance(runner, RunnerError):
        raise runner
    settings, rounds = bench.settings, []
    for number in range(settings.rounds + 1):
        request = Decode(batch, settings.input_length, settings.output_length, settings.seed + number, rate)
        rounds.append(runner.ask(request, Decoded, settings.timeout_s))
    measured = rounds[1:]
    times = [each.seconds / each.tokens * batch * 1e3 for each in measured]
    found = {
        "tpot_ms": statistics.median(times),
        "tpot_ms_range": [min(times), max(times)],
        "floor_ms": bench.floor_ms(batch),
        "acceptance_rate": None,
        "mean_accepted_length": None,
    }
    if not way.count:
        return found | {"versions": runner.ask(Info(), EngineFacts, settings.timeout_s).versions}
    length = sum(each.tokens for each in measured) / sum(each.rows for each in measured)
    return found | {"acceptance_rate": (length - 1) / way.count, "mean_accepted_length": length}
