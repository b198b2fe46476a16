"""What a scheduler has counted since its start."""

from __future__ import annotations

from dataclasses import dataclass

from parhelion.scheduler.block_pool import BlockPool
from parhelion.types import EngineStats


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

    def stats(self, num_running: int, num_waiting: int, pool: BlockPool) -> EngineStats:
        """These, and the counts of this moment: of requests, and of the pool's blocks."""
        return EngineStats(
            num_running=num_running,
            num_waiting=num_waiting,
            num_blocks=pool.num_blocks,
            num_blocks_in_use=pool.num_blocks - pool.num_free,
            num_blocks_cached=pool.num_cached,
            prefix_cache_queried_tokens_total=self.queried_tokens,
            prefix_cache_hit_tokens_total=self.hit_tokens,
            preemptions_total=self.preemptions,
            prompt_tokens_total=self.prompt_tokens,
            generation_tokens_total=self.generation_tokens,
            steps_total=self.steps,
            guessed_tokens_total=self.guessed_tokens,
            accepted_tokens_total=self.accepted_tokens,
            checked_rows_total=self.checked_rows,
        )
