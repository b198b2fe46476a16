"""The ``gluon`` provider: an op's program in Gluon, the language below Triton, launched from packs alone.

An op's ``gluon_kernel.py`` holds, beside the ``gluon.jit`` function, a host function of the program's name, written as
Helion writes those that it generates:

    def program(x, out, size, num_programs, *, _launcher):
        _launcher(_gluon_program, (num_programs,), x, out, size, num_warps=4)

It is read and recorded where packs are built (``tuning/host_recipe.py``, ``tuning/record.py``) and never run while
serving. What the host does before it stands in the op's ``launch.py``, as for all tile programs.

The program may be an op's second one, beside Helion's: then both files stand in a folder of their own, which the
provider names (``ops/tile_programs.py``).
"""

from __future__ import annotations

from pathlib import Path

import torch

from parhelion.ops.provider import BaseProvider


class GluonProvider(BaseProvider):
    """Programs that a pack brings, and nobody compiles while serving.

    Args:
        folder: under ``parhelion/ops``, where they are; None: in the op's own.
    """

    name = "gluon"

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def why_not(self, device: torch.device) -> str | None:
        return "its programs are launched from a pack, where that says that they are the quickest"


def gluon_source(kernel: str) -> str | None:
    """The text of the module of a program such as ``decoder_block.decoder_block``; None if its op has none in Gluon."""
    path = Path(__file__).parent / kernel.partition(".")[0] / "gluon_kernel.py"
    return path.read_text(encoding="utf-8") if path.is_file() else None
