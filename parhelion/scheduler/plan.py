"""What the scheduler decides for one step, and what it learns from it. Plain records over ids and counts.

They are msgspec structs because a step makes hundreds: a tenth of a frozen dataclass's time to build, and nothing for
the garbage collector to follow in the flat ones (``gc=False``).
"""

from __future__ import annotations

import msgspec

from parhelion.types import FinishReason

DRAFTED = -1
"""Stands among a row's guesses for one that the worker's draft model makes, in the same step, before it is checked."""

KNOWN = -1
"""Stands for a row's first token where the worker has it."""

AWAITED = -2
"""Stands for a row's first token that a step under way is sampling."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """The tokens of one request that a step computes.

    Attributes:
        request_id: whose.
        slot: the request's row in the worker's per-request tensors, 0 <= slot < max_num_seqs.
        start: position of the first token; everything before it is in the KV cache already.
        num_tokens: how many tokens from there.
        samples: the last of them is the request's last known token, so the step samples the next one.
        output_index: index of the sampled token among the request's outputs (0 is the first); meaningless
            unless ``samples``.
        guesses: the tokens behind the first one, which nobody knows yet: the step samples after each of them as well,
            and those are kept that were guessed right, with the one sampled behind them. All ``DRAFTED``, or none.
        first_token: id of the first token if an earlier step has sampled it, for workers that did not see it sampled:
            the first stages of a pipeline. ``AWAITED`` if it is sampled in a step that is under way. Else ``KNOWN``.
        unchecked: guesses of its last row, in a step that was not back when this one was planned. ``start`` and
            ``output_index`` count all of them; the worker takes off those that turn out wrong.
    """

    request_id: str
    slot: int
    start: int
    num_tokens: int
    samples: bool
    output_index: int
    guesses: tuple[int, ...] = ()
    first_token: int = KNOWN
    unchecked: int = 0

    @property
    def num_samples(self) -> int:
        """Tokens that the step samples for it."""
        return self.samples + len(self.guesses)


class Admission(msgspec.Struct, frozen=True):
    """A request that takes a slot in this step: new, or resumed after preemption.

    Attributes:
        token_ids: prompt and, for a resumed request, its outputs so far.
        num_prompt_tokens: how many of token_ids are prompt.
        block_ids: the blocks it starts with (cached prefix and new ones), in order of position.
        num_cached_tokens: tokens whose KV were found in the prefix cache.
    """

    request_id: str
    slot: int
    token_ids: tuple[int, ...]
    num_prompt_tokens: int
    block_ids: tuple[int, ...]
    num_cached_tokens: int


class NewBlocks(msgspec.Struct, frozen=True):
    """Blocks appended to the block table of a slot that was running already."""

    slot: int
    block_ids: tuple[int, ...]


class StepPlan(msgspec.Struct, frozen=True):
    """One step: decode rows first, then prefill chunks. Steps run in the order in which they were planned.

    Attributes:
        follows: the worker's draft model catches up on the tokens that earlier steps computed for the rows. Rows whose
            guesses are ``DRAFTED`` need that; prompts in chunks had better be followed chunk by chunk.
        num_ahead: at the end of the step it makes so many guesses for each row that samples, which a later plan may
            have among its own; 0: it makes those that are ``DRAFTED``, at the beginning.
        awaits: the step under way that samples the first tokens which are ``AWAITED``; None if none are.
        num_in_flight: so many steps right before this one were not back when it was planned.
    """

    step: int
    rows: tuple[Row, ...]
    admissions: tuple[Admission, ...]
    new_blocks: tuple[NewBlocks, ...]
    follows: bool = False
    num_ahead: int = 0
    awaits: int | None = None
    num_in_flight: int = 0

    @property
    def num_tokens(self) -> int:
        return sum(row.num_tokens for row in self.rows)


class RequestUpdate(msgspec.Struct, frozen=True, gc=False):
    """What a finished step means for one request: a token that it sampled. With guesses there are several.

    Attributes:
        token_id: the sampled token.
        finish_reason: set on the request's last update.
        stop_token_id: the end-of-sequence or stop id that ended it, if one did.
        num_cached_tokens: prompt tokens taken from the prefix cache at first admission.
        sample: which of the step's samples it is.
    """

    request_id: str
    token_id: int
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    num_cached_tokens: int = 0
    sample: int = 0
