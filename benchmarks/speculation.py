"""What guessing tokens ahead gains on this CPU: the engine without guesses, with them, and with those that pay.

Each engine lives in a process of its own and only one works at a time; a ratio is formed within a round. Texts are
greedy, in the default dtype: there a step of several tokens rounds otherwise than one of a single token, so a text may
come to differ; in float32 none does, which the tests hold.

    python benchmarks/speculation.py [--rounds N] [--batches 1,8,32] [--output FILE]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console

from parhelion.bench.report import Measurement, Report, make_report, to_table, write_json
from parhelion.platform.measure import summarize
from parhelion.types import SamplingParams

RESULT = Path(__file__).parent / "results" / "speculation.json"
MODEL = "smollm2-135m"
OUTPUT_LENGTH = 128

WAYS = ("off", "ngram", "auto")

CODE = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance = self.balance + amount
        return self.balance

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance = self.balance - amount
        return self.balance
"""

RECORDS = """{"id": 1, "name": "Ada Lovelace", "born": 1815, "field": "mathematics", "country": "England"}
{"id": 2, "name": "Alan Turing", "born": 1912, "field": "computing", "country": "England"}
{"id": 3, "name": "Grace Hopper", "born": 1906, "field": "computing", "country": "United States"}
{"id": 4, "name": "Emmy Noether", "born": 1882, "field": "mathematics", "country": "Germany"}
"""

LETTER = """Dear reader, thank you for your order of twelve oak chairs, two oak tables and one walnut shelf. The chairs
will leave our workshop on the third of May, the tables on the tenth of May and the shelf on the twentieth of May.
Please have the invoice of four thousand and two hundred crowns paid by the end of June. Kind regards, the workshop."""

REPORT = """The water of the lake was measured at three places. At the mouth of the river the water was cold and
clear, at the old harbour the water was warm and green, and in the middle of the lake the water was cold and dark. At
the mouth of the river there were nine kinds of fish, at the old harbour four, and in the middle of the lake two."""

PROMPTS: Mapping[str, tuple[str, ...]] = {
    "code editing": (
        f"Rename balance to total in this code and write all of it again:\n\n{CODE}",
        f"Write this code again with a docstring for the class, and nothing else changed:\n\n{CODE}",
    ),
    "JSON": (
        f"Repeat these records as they are, one a line:\n\n{RECORDS}",
        f"Repeat these records in the same form, sorted by the year of birth:\n\n{RECORDS}",
    ),
    "extraction": (
        f"Extract from this letter all that is said of chairs, tables and the shelf, in its own words:\n\n{LETTER}",
        f"Extract from this report all that is said of each of the three places, in its own words:\n\n{REPORT}",
    ),
    "stories": (
        "Write a short story about a lighthouse keeper who finds a letter.",
        "Describe a walk through an old town at night, as a poet would.",
    ),
}
"""Kinds of prompts: three whose answers repeat what they were given, and one whose answers do not. An answer ends where
the model ends it: what it would go on with has nothing to do with the prompt."""


@dataclass(frozen=True)
class Settings:
    """What is measured. A ratio is formed within a round; above 1, guessing gains."""

    model: str = MODEL
    output_length: int = OUTPUT_LENGTH
    batches: tuple[int, ...] = (1, 8, 32)
    rounds: int = 3


Round = tuple[float, float]
"""Tokens a second, and the share of guesses that was right; 0 without any."""


def serve(pipe: Connection, way: str) -> None:
    """Load an engine, then answer the prompts of a kind, so many at once, for every message until None comes."""
    from parhelion import LLM

    memory = 1 << 30
    with LLM(MODEL, speculate=way, enable_prefix_caching=False, kv_cache_memory=memory) as llm:
        params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_LENGTH)
        pipe.send(None)
        while (asked := pipe.recv()) is not None:
            kind, batch = asked
            prompts = [{"role": "user", "content": prompt} for prompt in PROMPTS[kind]]
            # One request at a time answers each of the prompts; several at once answer them in turn.
            groups = (
                [[[each]] for each in prompts] if batch == 1 else [[[prompts[i % len(prompts)]] for i in range(batch)]]
            )
            before = llm.stats()
            start = time.perf_counter()
            tokens = sum(len(output.outputs[0].token_ids) for group in groups for output in llm.chat(group, params))
            seconds = time.perf_counter() - start
            after = llm.stats()
            guessed = after.guessed_tokens_total - before.guessed_tokens_total
            right = after.accepted_tokens_total - before.accepted_tokens_total
            pipe.send((tokens / seconds, right / max(1, guessed)))


class Engine:
    """An engine in its own process."""

    def __init__(self, way: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=serve, args=(there, way), daemon=True)
        self._process.start()
        there.close()
        self._pipe.recv()

    def round(self, kind: str, batch: int) -> Round:
        """Answer the prompts of a kind, so many at once."""
        self._pipe.send((kind, batch))
        figures: Round = self._pipe.recv()
        return figures

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(30)


def measure(settings: Settings) -> Report:
    """Run the comparison; takes minutes."""
    engines = {way: Engine(way) for way in WAYS}
    measurements = []
    for kind in PROMPTS:
        for batch in settings.batches:
            samples: dict[str, list[Round]] = {way: [] for way in WAYS}
            for number in range(settings.rounds + 1):
                for way, engine in engines.items():
                    figures = engine.round(kind, batch)
                    if number:
                        samples[way].append(figures)
            case = f"{kind}, batch {batch}"
            rates = {way: [each[0] for each in own] for way, own in samples.items()}
            measurements.append(Measurement(case, "without guesses", "tokens/s", summarize(rates["off"])))
            for way in WAYS[1:]:
                gains = [ours / plain for ours, plain in zip(rates[way], rates["off"], strict=True)]
                measurements.append(Measurement(case, f"{way} over none", "x", summarize(gains)))
            right = [100 * each[1] for each in samples["ngram"]]
            measurements.append(Measurement(case, "ngram: guessed right", "%", summarize(right)))
            print(*(f"{each.quantity} {each.summary.median:.3g} {each.unit};" for each in measurements[-4:]), case)
    for engine in engines.values():
        engine.close()
    return make_report("speculation", settings, measurements)


def main() -> None:
    """Parse the options, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=Settings().rounds)
    parser.add_argument("--batches", default=",".join(map(str, Settings().batches)))
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    batches = tuple(int(batch) for batch in options.batches.split(","))
    report = measure(Settings(rounds=options.rounds, batches=batches))
    Console().print(to_table(report))
    write_json(report, options.output)


if __name__ == "__main__":
    main()
