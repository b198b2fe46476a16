"""Whether sums over ranks are planned together with the norms behind them, and what is said if they are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parhelion.distributed.group import ALONE, Group
from parhelion.engine import load
from parhelion.ops.resolve import Resolver

TWO = Group(0, 2)


def asked(
    monkeypatch: pytest.MonkeyPatch,
    why_not: str | None = None,
    device: str = "cuda",
    group: Group = TWO,
    fusion: str = "fused",
    dtype: torch.dtype = torch.bfloat16,
) -> tuple[bool, list[tuple[int, int]], list[str]]:
    """Whether rows can be exchanged, what the ranks were asked, and the notes."""
    questions: list[tuple[int, int]] = []

    def why_no_exchange(device: torch.device, num_ranks: int, hidden_size: int) -> str | None:
        questions.append((num_ranks, hidden_size))
        return why_not

    monkeypatch.setattr(load, "why_no_exchange", why_no_exchange)
    resolver = Resolver(torch.device(device))
    found: Any = SimpleNamespace(hidden_size=64)
    arithmetic: Any = SimpleNamespace(fusion=fusion, dtype=dtype)
    return load._can_exchange(found, arithmetic, resolver, group), questions, resolver.notes


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"device": "cpu"}, id="processes on a CPU"),
        pytest.param({"group": ALONE}, id="one rank"),
        pytest.param({"fusion": "plain"}, id="nothing is fused"),
        pytest.param({"dtype": torch.float32}, id="elements that do not fit into words"),
    ],
)
def test_nobody_is_asked_where_no_rows_are_exchanged_inside_kernels(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert asked(monkeypatch, "nobody can", **options) == (True, [], [])


def test_ranks_on_gpus_are_asked_and_what_is_in_the_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch) == (True, [(2, 64)], [])
    note = "sums over ranks are launches of their own: its ranks are on 2 machines"
    assert asked(monkeypatch, "its ranks are on 2 machines") == (False, [(2, 64)], [note])
