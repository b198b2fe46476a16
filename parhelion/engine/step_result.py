"""What executing a step yields, at once or when the device has got there."""

from __future__ import annotations

from dataclasses import dataclass, field
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
class Drafted:
    """What a draft model guessed for a step.

    Attributes:
        token_ids: the guesses, row after row; none if they are for later steps.
        num_tokens: tokens that it computed, those that it caught up on included.
        seconds: that it took.
    """

    token_ids: list[int]
    num_tokens: int
    seconds: float


@dataclass(frozen=True)
class Proposal:
    """What a draft model guesses for a request's next step.

    Attributes:
        num_known: tokens of the request that the guesses come behind.
        token_ids: the guesses.
    """

    request_id: str
    num_known: int
    token_ids: list[int]


@dataclass(frozen=True)
class StepResult:
    """What a step produced.

    Attributes:
        token_ids: sampled ids, one per row that samples, in the plan's order.
        logprobs: beside them, where asked for.
        prompt_logprobs: of prompt chunks, where asked for.
        drafted: the guesses that a draft model made, if it took part.
        proposals: those that it made for later steps.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprob | None]
    prompt_logprobs: list[PromptLogprobs]
    drafted: Drafted | None = None
    proposals: list[Proposal] = field(default_factory=list)

    def wait(self) -> StepResult:
        """Itself: a finished step is its own pending one."""
        return self


NOTHING = StepResult([], [], [])
"""Of a step that another rank completes."""


class PendingStep(Protocol):
    """A step that was handed to the device."""

    def wait(self) -> StepResult:
        """Block until the device has finished the step. May be called from any thread, and more than once."""
        ...
