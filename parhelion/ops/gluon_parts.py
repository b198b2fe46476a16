"""What programs in Gluon have in common: names that differ between Triton's versions, programmatic launches, and the
rotation of heads.
"""

from __future__ import annotations

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.ampere import async_copy

# The same under two names, by Triton's version.
sync = getattr(gl, "barrier", None) or gl.thread_barrier
copy = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
taken_as = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret

LOG2_E = gl.constexpr(1.4426950408889634)


@gluon.jit
def run_asm(text: gl.constexpr):
    gl.inline_asm_elementwise(text, "=r,r", [gl.program_id(0)], dtype=gl.int32, is_pure=False, pack=1)


@gluon.jit
def start_successor(programmatic: gl.constexpr):
    """As of ``ops/programmatic.py``."""
    if programmatic:
        run_asm("griddepcontrol.launch_dependents; mov.u32 $0, 0;")


@gluon.jit
def wait_for_predecessor(programmatic: gl.constexpr):
    """As of ``ops/programmatic.py``."""
    if programmatic:
        run_asm("griddepcontrol.wait; mov.u32 $0, 0;")


@gluon.jit
def rotated(x, turned, weights, cos, sin, d, head_dim: gl.constexpr, epsilon: gl.constexpr):
    """Heads, [rows, head_dim], normalized if there are weights, rotated and rounded.

    Args:
        turned: the heads with their halves exchanged.
        weights: of the norm, in the order of either; None: heads are not normalized.
        cos, sin: of each row's position, or of one that all have, [rows or 1, head_dim].
        d: 0 to head_dim.
    """
    x = x.to(gl.float32)
    turned = gl.where((d < head_dim // 2)[None, :], -turned.to(gl.float32), turned.to(gl.float32))
    if weights is not None:
        factor = gl.rsqrt(gl.sum(x * x, axis=1) / head_dim + epsilon)[:, None]
        x = x * factor * weights[0]
        turned = turned * factor * weights[1]
    return (x * cos + turned * sin).to(gl.bfloat16)
