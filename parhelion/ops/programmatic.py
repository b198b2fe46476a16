"""Programmatic dependent launch: a kernel starts before its predecessor has ended, and waits only where it must.

NVIDIA GPUs from sm_90 on have it (CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"). A
tile program tells its successor to start, reads what no predecessor writes (weights, scales), waits for the
predecessor's end, and only then reads activations and writes. Every program waits, so that what ends has all before it
behind it.

Both functions are traced into tile programs and do nothing unless ``programmatic`` is set, which it must not be where
there is no such launch, nor in the interpreter.
"""

from __future__ import annotations

import helion.language as hl


def start_successor(programmatic: bool) -> None:
    """Let the next kernel start: it will wait for this one's end by itself."""
    if programmatic:
        hl.inline_triton("tl.extra.cuda.gdc_launch_dependents()", args=(), output_like=None)


def wait_for_predecessor(programmatic: bool) -> None:
    """Everything that earlier kernels wrote is there from here on."""
    if programmatic:
        hl.inline_triton("tl.extra.cuda.gdc_wait()", args=(), output_like=None)
