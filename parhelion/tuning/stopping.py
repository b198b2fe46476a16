"""When a row is good enough."""

from __future__ import annotations

NEAR_FLOOR = 0.05
"""A time within so much of the floor is as good as any: ceilings are not known better than that."""

LEAST_SHARE = 0.002
"""A row that can gain no more than this of the step's time is not worth the search."""

LEAST_GAIN = 0.01
"""What a refinement must have gained, for another one."""


def is_near_floor(time_us: float, floor_us: float, margin: float = NEAR_FLOOR) -> bool:
    """Whether a time is within a margin of what the device allows."""
    return time_us <= floor_us * (1 + margin)


def share_to_gain(time_us: float, floor_us: float, weight: float, step_us: float) -> float:
    """The most that a row can still gain of the step's time.

    Args:
        time_us: of one launch now; ``floor_us`` at best.
        weight: launches a step.
        step_us: of all rows of the bucket together.
    """
    return max(0.0, time_us - floor_us) * weight / step_us if step_us > 0 else 0.0


def is_done(
    time_us: float,
    floor_us: float,
    weight: float,
    step_us: float,
    *,
    margin: float = NEAR_FLOOR,
    least_share: float = LEAST_SHARE,
) -> bool:
    """Whether searching on for a row cannot pay; see the constants above."""
    return is_near_floor(time_us, floor_us, margin) or share_to_gain(time_us, floor_us, weight, step_us) < least_share


def has_gained(before_us: float, after_us: float, least: float = LEAST_GAIN) -> bool:
    """Whether a refinement was worth another one."""
    return after_us < before_us * (1 - least)
