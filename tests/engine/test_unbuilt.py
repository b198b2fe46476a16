"""A draft whose tile programs no pack has is named at the start, with the command that builds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parhelion.config import EngineConfig
from parhelion.engine.drafts.choice import read_draft
from parhelion.engine.load import load_draft, load_model
from parhelion.engine.unbuilt import unbuilt_note
from parhelion.ops.all_reduce_rms_norm import AllReduceRmsNorm
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.resolve import Resolver
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.silu_and_mul import SiluAndMul
from tests.e2e.eagle3_scratch import HEAD_JSON
from tests.e2e.tiny_models import TINY_MODELS
from tests.models.eagle3_heads import write_head


def notes_of(folder: Path, draft: Path, **options: Any) -> list[str]:
    """What the engine says once it has loaded a draft beside a model; neither has weights."""
    config = EngineConfig(model=str(folder), device="cpu", dtype="float32", threads=1, load_format="dummy", **options)
    loaded = load_model(config, folder, keep_tables=True)
    load_draft(config, read_draft(draft), loaded)
    return [note for note in loaded.resolver.all_notes() if note.startswith("no pack has")]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    TINY_MODELS[0].write(tmp_path / "target")
    return tmp_path / "target"


@pytest.fixture
def _norms_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU without rows for them."""
    original = Resolver.bind

    def bind(self: Resolver, contract: Contract, *weights: Any) -> Launcher:
        if contract.name == "rms_norm" and contract not in self.unbuilt:
            self.unbuilt.append(contract)
        return original(self, contract, *weights)

    monkeypatch.setattr(Resolver, "bind", bind)


@pytest.mark.usefixtures("_norms_compile")
def test_what_only_the_draft_calls_is_said_to_compile_while_it_serves(target: Path, tmp_path: Path) -> None:
    head = write_head(tmp_path / "head", HEAD_JSON)
    [note] = notes_of(target, head)
    assert note == (
        "no pack has what the draft head calls of rms_norm: their tile programs compile when a size is first met, "
        f"while all requests wait; parhelion build {head} --target sm_90 makes a pack of them, which --pack auto takes"
    )
    # That packs are off has been said, and a model beside itself calls nothing new.
    assert notes_of(target, head, pack="off") == []
    assert notes_of(target, target) == []


def test_nothing_is_said_where_nothing_compiles(target: Path, tmp_path: Path) -> None:
    assert notes_of(target, write_head(tmp_path / "head", HEAD_JSON)) == []


def test_what_ranks_call_together_is_tuned() -> None:
    path = Path("head")
    note = unbuilt_note("the draft head", [SiluAndMul(64), RmsNorm(64), RmsNorm(128)], path, "sm_90", 2)
    assert "calls of rms_norm, silu_and_mul: " in note
    assert "; parhelion build head --target sm_90 --tp 2 makes" in note
    shared = unbuilt_note("the draft head", [RmsNorm(64), AllReduceRmsNorm(64, 2)], path, "sm_90", 2)
    assert "; parhelion tune head --tp 2 makes" in shared
