"""What the engine does, as a line in the server's log every few seconds while it works."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from parhelion.errors import ParhelionError
from parhelion.server.engine_client import EngineClient
from parhelion.types import EngineStats

INTERVAL_S = 10.0
"""Seconds from one line to the next."""

logger = logging.getLogger("parhelion.server")


@dataclass(frozen=True)
class _Reading:
    """The engine's counts, and the seconds on the log's clock when they came."""

    stats: EngineStats
    moment: float


async def log_stats(
    engine: EngineClient, interval_s: float = INTERVAL_S, clock: Callable[[], float] = time.monotonic
) -> None:
    """Log a line for each interval in which the engine worked, and one for the first after these in which it did not.

    Returns when the engine is dead, and logs what ended it; else to be cancelled. An engine too busy to answer is
    asked again later, and the next line is then of a longer interval.

    Args:
        engine: asked for its counts.
        interval_s: seconds from one line to the next.
        clock: seconds, for the rates.
    """
    before: _Reading | None = None
    worked = False
    while not engine.is_dead:
        now = await _read(engine, clock)
        if now is not None and before is not None:
            counts = now.stats.since(before.stats)
            works = _is_work(counts)
            if works or worked:
                logger.info("%s", describe_interval(counts, now.moment - before.moment))
            worked = works
        before = now or before
        await asyncio.sleep(interval_s)
    await _log_death(engine)


async def _log_death(engine: EngineClient) -> None:
    """No request may be there to tell of it, and what is then refused would only say that there is no engine."""
    try:
        await engine.stats()
    except ParhelionError as error:
        logger.error("nothing more is served, for the engine has ended: %s", error)


async def _read(engine: EngineClient, clock: Callable[[], float]) -> _Reading | None:
    """None if the engine does not answer."""
    try:
        return _Reading(await engine.stats(), clock())
    except ParhelionError:
        return None


def _is_work(counts: EngineStats) -> bool:
    unfinished = counts.num_running + counts.num_waiting
    return unfinished + counts.prompt_tokens_total + counts.generation_tokens_total > 0


def describe_interval(counts: EngineStats, seconds: float) -> str:
    """An interval in a line.

    Args:
        counts: of the interval; see ``EngineStats.since``.
        seconds: its length.

    Returns:
        Such as ``3 running, 0 waiting; 96.0 prompt tokens/s, 240.5 generated tokens/s; 12.5% of KV blocks in use; 40.0%
        of prompt tokens cached; 0 preemptions; 55.5% of guesses accepted, mean accepted length 2.37, gain 1.45x``. What
        was not done in the interval (looking up prompts, guessing) is left out.
    """
    queried, rate = counts.prefix_cache_queried_tokens_total, counts.acceptance_rate
    length = counts.mean_accepted_length
    parts = [
        f"{counts.num_running} running, {counts.num_waiting} waiting",
        f"{_per_second(counts.prompt_tokens_total, seconds):.1f} prompt tokens/s, "
        f"{_per_second(counts.generation_tokens_total, seconds):.1f} generated tokens/s",
        f"{counts.kv_cache_usage:.1%} of KV blocks in use",
    ]
    if queried:
        parts.append(f"{counts.prefix_cache_hit_tokens_total / queried:.1%} of prompt tokens cached")
    parts.append(f"{counts.preemptions_total} preemptions")
    if rate is not None and length is not None:
        parts.append(
            f"{rate:.1%} of guesses accepted, mean accepted length {length:.2f}, gain {counts.speculation_gain:.2f}x"
        )
    return "; ".join(parts)


def _per_second(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0
