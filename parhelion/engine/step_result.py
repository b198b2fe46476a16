"""What executing a step yields, at once or when the device has got there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from parhelion.engine.messages import TokenLogprob


@dataclass(frozen=True)
class PromptLogprobs:
    """Log-probabilities of prompt tokens that one chunk predicted.

    Attributes:
        first_position: of the first of them in the prompt; position 0 is never predicted.
    """

    request_id: str
    first_position: int
    logprobs: list[TokenLogprob]


@dataclass(frozen=True)
class StepResult:
    """What a step produced.

    Attributes:
        token_ids: sampled ids, one per row that samples, in the plan's order.
        logprobs: beside them, where asked for.
        prompt_logprobs: of prompt chunks, where asked for.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]
    prompt_logprobs: list[PromptLogprobs]

    def wait(self) -> StepResult:
        """Itself: a finished step is its own pending one."""
        return self


class PendingStep(Protocol):
    """A step that was handed to the device."""

    def wait(self) -> StepResult:
        """Block until the device has finished the step. May be called from any thread, and more than once."""
        ...
