"""What the scheduler must know of the model and of the storage."""

from __future__ import annotations

from dataclasses import dataclass

from parhelion.config import SchedulingPolicy
from parhelion.errors import ConfigError


@dataclass(frozen=True)
class SchedulerConfig:
    """Limits of the scheduler; the names are those of ``EngineConfig``.

    Attributes:
        num_blocks: KV blocks in the storage.
        block_size: tokens a block holds.
        max_num_seqs: most requests that run at once, and the number of slots.
        max_num_batched_tokens: the token budget of one step.
        max_model_len: most tokens of a request, prompt and output together.
        max_queue_len: most requests that may wait.
        enable_prefix_caching: reuse the blocks of equal prefixes.
        policy: ``fcfs``, or ``priority`` (lower value first, then arrival).
        num_groups: parts into which the running requests are divided, such as a pipeline has stages; a step computes
            one of them. With several, a request is not planned while a token of it is being sampled.

    Raises:
        ConfigError: a limit is below 1, or a step has no room for one token of every running request.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_queue_len: int = 4096
    enable_prefix_caching: bool = True
    policy: SchedulingPolicy = "fcfs"
    num_groups: int = 1

    def __post_init__(self) -> None:
        limits = (
            ("num_blocks", self.num_blocks),
            ("block_size", self.block_size),
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_model_len", self.max_model_len),
            ("max_queue_len", self.max_queue_len),
            ("num_groups", self.num_groups),
        )
        for name, value in limits:
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "raise it, so that a step has room for one token of every running request"
            )
        if self.policy not in ("fcfs", "priority"):
            raise ConfigError(f"policy is {self.policy!r}; it must be 'fcfs' or 'priority'")

    @property
    def num_storable_tokens(self) -> int:
        """Tokens that all blocks together can hold."""
        return self.num_blocks * self.block_size
