"""Python's collector of garbage, which stops a process for as long as it looks through everything that is alive."""

from __future__ import annotations

import gc


def keep_for_good(*, collect: bool = True) -> None:
    """Leave all objects that are there now out of later collections.

    For a process that has started and now serves. The modules, kernels and tables that it made meanwhile stay until it
    ends, and are some hundred thousand objects: a full collection that looks through them holds everything up for 0.2 s
    and more, in the middle of whatever is being served. Those made from now on are collected as ever.

    Args:
        collect: once more, so that garbage is not kept as well. That takes as long; where none holds memory of a device
            it is not worth the wait.
    """
    if collect:
        gc.collect()
    gc.freeze()
