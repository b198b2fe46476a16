"""Dummy weights of a peer: they are to be like Parhelion's, since how fast a product is depends on its numbers."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from parhelion.bench.compare.engines import Engine
from parhelion.bench.compare.runners.vllm_weights import FILLED

PLUGIN = Path(__file__).parent / "runners" / "vllm_weights.py"

LIKE_OURS = "vLLM's dummy weights are drawn as Parhelion's are: linear weights are codes of all sizes, norms are ones."
ITS_OWN = (
    "vLLM's dummy weights are its own, of which 98% of the FP8 ones are zeros: products may draw less power with "
    "them, and take less time where power is the limit, than with any model's."
)
NOT_TAKEN = "vLLM did not call the plugin that draws them so: it loaded no dummy weights, or its own."

_DISTRIBUTION = "parhelion_vllm_weights-1.0.dist-info"
_METADATA = "Metadata-Version: 2.1\nName: parhelion-vllm-weights\nVersion: 1.0\n"
_ENTRY_POINTS = f"[vllm.general_plugins]\nparhelion_weights = {PLUGIN.stem}:register\n"


class PeerWeights:
    """Gives vLLM weights like Parhelion's, by way of its plugins.

    Args:
        folder: a new one, for the plugin and for what it says.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filled = folder / "filled"
        (folder / _DISTRIBUTION).mkdir(parents=True)
        (folder / _DISTRIBUTION / "METADATA").write_text(_METADATA)
        (folder / _DISTRIBUTION / "entry_points.txt").write_text(_ENTRY_POINTS)
        shutil.copy(PLUGIN, folder)

    def given_to(self, engine: Engine) -> Engine:
        """The engine with the plugin; unchanged if it is another."""
        if engine.kind != "vllm":
            return engine
        before = engine.environment.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
        paths = os.pathsep.join([str(self._folder), *filter(None, before.split(os.pathsep))])
        return replace(engine, environment={**engine.environment, "PYTHONPATH": paths, FILLED: str(self._filled)})

    @property
    def were_taken(self) -> bool:
        """Whether a vLLM has drawn weights so by now."""
        return self._filled.exists()
