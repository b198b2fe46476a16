"""What the benchmark of quantized output heads counts: by hand on logits of three tokens."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import exp, log
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BASELINE = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.5, 0.375]]).log()
OTHER = torch.tensor([[0.25, 0.5, 0.25], [0.125, 0.5, 0.375]]).log()
NEXT = torch.tensor([0, 2])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import lm_head_accuracy

    return lm_head_accuracy


def test_a_head_is_counted_beside_the_baseline(script: ModuleType) -> None:
    baseline, other = script.Tally(), script.Tally()
    baseline.add(BASELINE, BASELINE, NEXT)
    # A constant added to a row's logits is no difference.
    other.add(OTHER + torch.tensor([[3.0], [-2.0]]), BASELINE, NEXT)
    same = baseline.result("same", baseline)
    assert (same.same_top1, same.perplexity_change, same.kl_mean, same.lost_nats) == (1.0, 0.0, 0.0, None)
    found = other.result("other", baseline)
    assert found.same_top1 == 0.5
    assert found.perplexity == pytest.approx(exp(-(log(0.25) + log(0.375)) / 2))
    assert found.perplexity_change == pytest.approx(2**0.5 - 1)
    assert found.kl_mean == pytest.approx((0.5 * log(2) - 0.25 * log(2)) / 2)
    assert found.lost_nats is not None
    assert found.lost_nats.median == pytest.approx(log(2))


def test_the_table_has_a_line_a_head_and_compares_all_but_the_first(script: ModuleType) -> None:
    import lm_head_table

    baseline, other = script.Tally(), script.Tally()
    baseline.add(BASELINE, BASELINE, NEXT)
    other.add(OTHER, BASELINE, NEXT)
    heads = tuple(tally.result(name, baseline) for name, tally in (("bfloat16", baseline), ("codes", other)))
    result = script.Result(script.Settings(), 2, (4_000_000, 2_100_000), heads, script.describe_circumstances("it"))
    lines = lm_head_table.lm_head_table(json.dumps(asdict(result)).encode()).splitlines()
    assert lines[2] == f"| bfloat16 |  |  | {heads[0].perplexity:.2f} |"
    assert lines[3] == f"| codes | 50.0% | 0.087 (0.17) | {heads[1].perplexity:.2f} (+41.42%) |"
    assert "4.0 MB, as codes 2.1 MB" in lines[-1]


def test_passages_do_not_overlap_and_too_many_are_refused(script: ModuleType, smollm2_path: Path) -> None:
    ids = list(script.passages(smollm2_path, script.Settings(prompts=3, length=8)))
    assert [len(each) for each in ids] == [8, 8, 8]
    assert len({tuple(each) for each in ids}) == 3
    with pytest.raises(SystemExit, match="too few for 100000 of 128"):
        script.passages(smollm2_path, script.Settings(prompts=100_000))
