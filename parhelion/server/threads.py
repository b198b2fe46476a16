"""Work that would hold up every stream is done beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

INLINE_SIZE = 4096
"""Characters or tokens. More are worked on in a thread; for fewer the hop there costs more than it spares."""

T = TypeVar("T")


async def beside_the_loop(size: int, work: Callable[[], T]) -> T:
    """What ``work`` returns; it runs in a thread if ``size``, in characters or tokens, exceeds ``INLINE_SIZE``."""
    return work() if size <= INLINE_SIZE else await asyncio.to_thread(work)
