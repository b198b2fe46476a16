"""What the tests of a comparison start from: a planted device, fake engines, a result file."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from parhelion.bench.compare.checkpoint import ComparedModel, Shape, compared_model
from parhelion.bench.compare.device import MemoryMeter, Probe
from parhelion.bench.compare.engines import Engine
from parhelion.bench.compare.offline import Bench
from parhelion.bench.compare.results import Comparison, Recorder
from parhelion.bench.compare.settings import OfflineSettings, OnlineSettings

FAKE = Path(__file__).with_name("fake_runner.py")
SMALL = Shape(64, 128, 2, 4, 2, 16, 1024, False)
"""A model that takes a CPU no time."""

CPU = Probe("cpu", "a planted device", 1e9, "", {1: 1e12, 2: 1e12})


def fake(name: str, behaviour: str = "ok", prefill_s: float = 0.5, tpot_s: float = 0.01, order: Path | None = None):
    """An engine of ``fake_runner.py``."""
    words = [sys.executable, str(FAKE), behaviour, str(prefill_s), str(tpot_s)]
    return Engine(name, "other", (*words, *([] if order is None else [str(order), name])))


def make_bench(
    folder: Path,
    settings: OfflineSettings,
    model: ComparedModel | None = None,
    say: Callable[[str], None] = lambda _text: None,
    online: OnlineSettings | None = None,
) -> Bench:
    """A bench whose result is ``folder / "out.json"``."""
    comparison = Comparison(
        device=CPU.name,
        bandwidth=CPU.bandwidth,
        versions={},
        command="",
        measured_at="",
        settings=settings,
        online_settings=online or OnlineSettings(),
        alive="all",
        memory_source="",
    )
    recorder = Recorder(comparison, folder / "out.json")
    chosen = model or compared_model("tiny", folder)
    return Bench(chosen, settings, CPU, MemoryMeter(""), recorder, folder / "logs", say)
