"""What an output head of FP8 codes changes: a real model's next tokens beside those of the same head in bfloat16.

The model reads passages of Python's own reference manual, as ``pydoc`` has it, in bfloat16. All heads are given the
same hidden states: those of ``--lm-head-quantization`` with their two ways to multiply, for several tokens (the
activations are quantized too) and for one (they are not), and for scale the same weights in float32.

    python benchmarks/lm_head_accuracy.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from math import exp, expm1
from pathlib import Path
from pydoc_data.topics import topics
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table

from parhelion import EngineConfig
from parhelion.bench.machine import Circumstances, describe_circumstances
from parhelion.bench.report import write_json
from parhelion.distributed.group import ALONE
from parhelion.engine.load import load_model
from parhelion.engine.score import prompt_states
from parhelion.layers.fusions import SINGLE_TOKEN
from parhelion.layers.program import PLAIN, Plan
from parhelion.layers.vocabulary import VocabularyHead
from parhelion.models.resolve import resolve_model
from parhelion.models.tokenizer import load_tokenizer
from parhelion.ops.resolve import Resolver
from parhelion.platform.measure import Summary, summarize
from parhelion.quantization import UNQUANTIZED, QuantScheme, choose_head_scheme, weights_of

RESULT = Path(__file__).parent / "results" / "lm_head_accuracy.json"
CPU = torch.device("cpu")
BLOCK_SIZE = 16


@dataclass(frozen=True)
class Settings:
    """``prompts`` passages, each of ``length`` tokens, of which every one but the first is a next token."""

    model: str = "smollm2-135m"
    prompts: int = 256
    length: int = 128


@dataclass(frozen=True)
class Head:
    """A way to compute logits.

    Attributes:
        name: for people.
        scheme: of the weights.
        dtype: of hidden states and logits.
        plan: the fusions.
    """

    name: str
    scheme: QuantScheme
    dtype: torch.dtype = torch.bfloat16
    plan: Plan = PLAIN


BASELINE = "bfloat16"
HEADS = (
    Head(BASELINE, UNQUANTIZED),
    Head("float32", UNQUANTIZED, torch.float32),
    Head("`int8`, activations not quantized", choose_head_scheme("int8"), plan=SINGLE_TOKEN),
    Head("`int8`, activations quantized", choose_head_scheme("int8")),
    Head("`fp8`, activations not quantized", choose_head_scheme("fp8"), plan=SINGLE_TOKEN),
    Head("`fp8`, activations quantized", choose_head_scheme("fp8")),
)


@dataclass(frozen=True)
class HeadResult:
    """A head beside the one in bfloat16.

    Attributes:
        head: its name.
        perplexity: of the passages.
        perplexity_change: over that of bfloat16, less 1.
        same_top1: share of positions at which both find the same token likeliest.
        lost_nats: where they do not, how far apart bfloat16 has the two tokens' log-probabilities.
        kl: Kullback-Leibler divergence from bfloat16, in nats, of all positions.
        kl_mean: its mean.
    """

    head: str
    perplexity: float
    perplexity_change: float
    same_top1: float
    lost_nats: Summary | None
    kl: Summary
    kl_mean: float


@dataclass(frozen=True)
class Result:
    """The file.

    Attributes:
        positions: at which next tokens were compared.
        head_bytes: of the output head's weights in bfloat16, and as codes with scales.
    """

    settings: Settings
    positions: int
    head_bytes: tuple[int, int]
    heads: tuple[HeadResult, ...]
    circumstances: Circumstances


@dataclass
class Tally:
    """What was seen of a head so far, a number a position; of ``lost`` one where the likeliest tokens differ.

    Plain numbers: small tensors that stay among large ones that go keep the heap from being used again.
    """

    nll: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)
    lost: list[float] = field(default_factory=list)

    def add(self, logits: torch.Tensor, baseline: torch.Tensor, next_ids: torch.Tensor) -> None:
        """Logits [M, vocab_size] of a head and of the baseline, and the tokens [M] that followed."""
        ours, theirs = (each.float().log_softmax(-1) for each in (logits, baseline))
        self.nll += (-ours.gather(1, next_ids[:, None])[:, 0]).tolist()
        self.kl += (theirs.exp() * (theirs - ours)).sum(-1).tolist()
        # As the engine finds them: of equal logits the first.
        chosen, wanted = logits.argmax(-1), baseline.argmax(-1)
        lost = (theirs.gather(1, wanted[:, None]) - theirs.gather(1, chosen[:, None]))[:, 0]
        self.lost += lost[chosen != wanted].tolist()

    def result(self, head: str, baseline: Tally) -> HeadResult:
        """All of it."""
        mean = fmean(self.nll)
        return HeadResult(
            head,
            exp(mean),
            expm1(mean - fmean(baseline.nll)),
            1.0 - len(self.lost) / len(self.nll),
            summarize(self.lost) if self.lost else None,
            summarize(self.kl),
            fmean(self.kl),
        )


def passages(model: Path, settings: Settings) -> Iterator[list[int]]:
    """Token ids of passages, evenly spread over the manual."""
    text = "\n".join(topics[name] for name in sorted(topics))
    ids = load_tokenizer(model).encode(text)
    step = (len(ids) - settings.length) // settings.prompts
    if step < settings.length:
        raise SystemExit(f"the manual has {len(ids)} tokens, too few for {settings.prompts} of {settings.length}")
    return (ids[start : start + settings.length] for start in range(0, step * settings.prompts, step))


def compare(settings: Settings) -> Result:
    """Run all passages through the model and its heads."""
    path = resolve_model(settings.model)
    options = EngineConfig(model=settings.model, device="cpu", dtype="bfloat16", max_model_len=settings.length)
    loaded = load_model(options, path, keep_tables=True)
    assert loaded.model.tables is not None
    table = loaded.model.tables[1]
    made = [(head, weights_of("lm_head", table, head.scheme, head.dtype)) for head in HEADS]
    heads = {
        head: VocabularyHead(weights, head.dtype, len(table), ALONE, Resolver(CPU), (head.plan,))
        for head, weights in made
    }
    tallies = {head: Tally() for head in HEADS}
    with torch.inference_mode():
        for ids in passages(path, settings):
            hidden, next_ids = prompt_states(loaded.model, ids, BLOCK_SIZE)[:-1], torch.tensor(ids[1:])
            baseline = heads[HEADS[0]](hidden)
            for head, compute in heads.items():
                logits = baseline if head.name == BASELINE else compute(hidden.to(head.dtype))
                tallies[head].add(logits, baseline, next_ids)
    sizes = [sum(each.nbytes for each in (w.weight, w.scales) if each is not None) for _, w in made]
    found = tuple(tally.result(head.name, tallies[HEADS[0]]) for head, tally in tallies.items())
    positions = settings.prompts * (settings.length - 1)
    return Result(settings, positions, (sizes[0], sizes[-1]), found, describe_circumstances())


def main() -> None:
    """Parse the options, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few passages, to see that it works; no figure to quote")
    parser.add_argument("--output", type=Path, default=None, help=f"default: benchmarks/results/{RESULT.name}")
    options = parser.parse_args()
    result = compare(replace(Settings(), prompts=8) if options.quick else Settings())
    table = Table(title=f"{result.settings.model}, {result.positions} positions", title_justify="left")
    for heading in ("head", "same top-1", "KL (nats)", "perplexity"):
        table.add_column(heading)
    for each in result.heads:
        change = f"{each.perplexity:.3f} ({each.perplexity_change:+.3%})"
        table.add_row(each.head, f"{each.same_top1:.2%}", f"{each.kl_mean:.2e}", change)
    Console().print(table)
    if options.output or not options.quick:
        write_json(result, options.output or RESULT)


if __name__ == "__main__":
    main()
