"""What a provider of an op says about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Availability:
    """Whether a provider can serve here, in words that ``parhelion doctor`` prints.

    Attributes:
        op, provider: which.
        available: it can serve on this machine.
        reason: what it offers or, if it cannot serve, why not.
    """

    op: str
    provider: str
    available: bool
    reason: str
