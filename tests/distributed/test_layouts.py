"""Which layouts there are, which cannot be, and what is said of those."""

from __future__ import annotations

from dataclasses import replace

import pytest

from parhelion.distributed.layouts import Layout, divisors, layouts, why_not
from parhelion.quantization import FP8_BLOCK
from tests.distributed.sample import QWEN3_8B, qwen3_8b


@pytest.mark.parametrize("num_gpus", [1, 7, 8, 36, 4096])
def test_layouts_use_all_gpus_each_once(num_gpus: int) -> None:
    found = list(layouts(num_gpus))
    assert len(set(found)) == len(found)
    assert all(each.num_gpus == num_gpus for each in found)
    assert Layout(num_gpus, 1, 1) in found
    assert Layout(1, 1, num_gpus) in found


def test_divisors_are_all_and_ascending() -> None:
    assert divisors(36) == [each for each in range(1, 37) if 36 % each == 0]


@pytest.mark.parametrize("tp", [1, 2, 4, 8, 16, 32])
def test_tp_may_exceed_the_kv_heads(tp: int) -> None:
    assert why_not(QWEN3_8B, Layout(tp), 8) is None


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(6), "32 heads are no multiple of tp 6; tp may be 1, 2, 4, 8, 16, 32"),
        (Layout(1, 37), "36 layers are too few for pp 37; pp may be 1 to 36"),
        (Layout(64), "tp may be"),
    ],
)
def test_uneven_layouts_are_refused_with_sizes_that_work(layout: Layout, said: str) -> None:
    assert said in (why_not(QWEN3_8B, layout, 8) or "")


def test_kv_heads_that_neither_divide_nor_replicate_are_refused() -> None:
    model = replace(QWEN3_8B, num_heads=12, num_kv_heads=4)
    assert "4 KV heads" in (why_not(model, Layout(6), 8) or "")


def test_block_scales_are_not_cut() -> None:
    model = replace(qwen3_8b(FP8_BLOCK), intermediate_size=18944)
    reason = why_not(model, Layout(8), 8) or ""
    assert "18944" in reason
    assert "128" in reason
    assert reason.endswith("tp may be 1, 2, 4")


def test_a_group_lies_in_one_node_or_fills_several() -> None:
    model = replace(QWEN3_8B, num_heads=24, num_kv_heads=24)
    assert "two nodes" in (why_not(model, Layout(3, 1, 8), 8) or "")
    assert "whole nodes" in (why_not(model, Layout(12, 1, 2), 8) or "")
    assert why_not(model, Layout(24), 8) is None
