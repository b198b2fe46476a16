"""From a contract to the launches of its tile programs, without the tile programs.

An op's ``launch.py`` says how the host uses what stands in its ``helion_kernel.py`` or ``gluon_kernel.py``:

    Config                                            the op's choices, a frozen dataclass of plain values
    def default_config(contract, bucket, target)      the untuned one for M up to ``bucket``
    def candidates(contract, bucket, target)          those worth trying there, the untuned one first
    def launch(contract, run, config, *inputs)        allocates the outputs and hands programs to ``run``

An op of which inputs decide beside M which programs are launched, and how, also has

    def build_inputs(contract, bucket)                a list of empty inputs that between them launch all there are
    def timed_inputs(contract, bucket)                likewise those that a measured step of M = ``bucket`` launches
    def timed_programs(bucket, config)                a bucket and a config that launch the same then, one for many

An op that is a GEMM with more before or behind it has

    def gemm_shape(contract)                          the ``GemmShape`` by which its configs are judged

``run(kernel, config, *arguments)`` launches the tile program named ``folder.function`` with a ``KernelConfig``. What it
does is up to whoever calls ``launch``: compile and launch, interpret, record for a build, or launch what a pack holds.
Nothing here or in a ``launch.py`` imports Helion.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from parhelion.ops.gemm.target import GemmTarget

Runner = Callable[..., Any]
"""``run(kernel, config, *arguments)``: launch a tile program. Returns nothing of use."""

BUCKETS = tuple(1 << power for power in range(14))
"""Sizes of M with a config of their own: each serves from above the one before it, the last one all larger M too."""


class LaunchModule(Protocol):
    """What an op's ``launch.py`` has."""

    Config: type[Any]

    def default_config(self, contract: Any, bucket: int, target: GemmTarget) -> Any: ...

    def candidates(self, contract: Any, bucket: int, target: GemmTarget) -> list[Any]: ...

    def launch(self, contract: Any, run: Runner, config: Any, *inputs: Any) -> Any: ...


def launch_module(op: str) -> LaunchModule:
    """An op's ``launch.py``."""
    module: Any = importlib.import_module(f"parhelion.ops.{op}.launch")
    return module  # type: ignore[no-any-return]


def bucket_index(num_tokens: int) -> int:
    """Where in ``BUCKETS`` a size of M belongs."""
    return min((num_tokens - 1).bit_length(), len(BUCKETS) - 1) if num_tokens > 1 else 0


def bucket_of(num_tokens: int) -> int:
    """The bucket of a size of M."""
    return BUCKETS[bucket_index(num_tokens)]


def build_sizes(bucket: int) -> tuple[int, int]:
    """Two sizes of M, of which programs are built that serve a whole bucket.

    Neither is 1, which Helion would take for a constant, and one is odd, lest a size that follows M be taken for a
    multiple of 16.
    """
    if bucket < 8:
        return (3, 4) if bucket == 4 else (2, 3)
    return bucket // 2 + 3, bucket


def target_of(run: Runner) -> str | None:
    """What a runner launches or builds for, such as ``"sm_90"`` or ``"gfx942"`` (its attribute ``target``).

    None if it compiles for the inputs' device or interprets.
    """
    target: str | None = getattr(run, "target", None)
    return target
