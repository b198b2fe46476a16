"""What a scheduler has counted since its start."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Totals:
    """Counts that only grow, as in ``EngineStats``."""

    queried_tokens: int = 0
    hit_tokens: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    checked_rows: int = 0
