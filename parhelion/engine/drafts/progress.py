"""How far a draft model has followed each request, and which rows it computes before a step.

Its keys and values lie in the same blocks as the target's, in tensors of its own. So a cached prefix brings them along,
if the draft model had computed them; where it had not, it does so when the request is drafted for.

A step may be planned before the guesses of the one before it are checked. Then everything is counted as if all of these
were right, until ``settle`` says how many were not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from parhelion.engine.step_layout import Ints, StepRows, numbers

MOST_LAG = 16
"""``most_lag`` of a model that can compute at any time what it lacks."""


class DraftProgress:
    """By slot, the tokens whose keys and values the draft model has written; by block, whether it has filled it.

    Args:
        max_num_seqs: slots.
        max_blocks: of a slot.
        num_blocks: of the KV cache.
        block_size: tokens of a block.
        budget: tokens of its largest pass.
        behind: 0 for a draft model, which computes a request's last known token; 1 for a head that computes the one
            before that, out of the target's hidden state there and the id of the last one.
        most_lag: tokens that a row which decodes without guesses may be ahead of it before it catches up.

    Attributes:
        computed: [max_num_seqs] leading tokens of each slot that are written.
        stays: [max_num_seqs] how many requests have taken each slot.
    """

    def __init__(
        self,
        max_num_seqs: int,
        max_blocks: int,
        num_blocks: int,
        block_size: int,
        budget: int,
        behind: int = 0,
        most_lag: int = MOST_LAG,
    ) -> None:
        self.computed = np.zeros(max_num_seqs, np.int64)
        self.stays = np.zeros(max_num_seqs, np.int64)
        self.behind = behind
        # Slots of which ``computed`` counts guesses that a step under way checks.
        self._at_bound = np.zeros(max_num_seqs, np.bool_)
        self._block_table = np.zeros((max_num_seqs, max_blocks), np.int64)
        self._filled = np.zeros(num_blocks, np.bool_)
        # How often each block was given out, in all and when a slot got it: what a slot has filled may be another's by
        # the time that is known.
        self._times_given = np.zeros(num_blocks, np.int64)
        self._given = np.zeros((max_num_seqs, max_blocks), np.int64)
        self._block_size = block_size
        self._budget = budget
        self._most_lag = most_lag
        # By slot, how many of its leading blocks are known to be filled.
        self._full = np.zeros(max_num_seqs, np.int64)

    def append(self, slot: int, first: int, block_ids: Ints, num_cached_tokens: int | None = None) -> None:
        """A slot gets blocks. What they held is of no use any more, but for a prefix from the cache.

        Args:
            slot: whose.
            first: index of the first of the blocks among its own.
            block_ids: of them.
            num_cached_tokens: of a request that has just taken the slot; None: of one that runs.
        """
        self._block_table[slot, first : first + len(block_ids)] = block_ids
        num_cached = (num_cached_tokens or 0) // self._block_size
        self._filled[block_ids[num_cached:]] = False
        self._times_given[block_ids[num_cached:]] += 1
        self._given[slot, first : first + len(block_ids)] = self._times_given[block_ids]
        if num_cached_tokens is not None:
            self.stays[slot] += 1
            self._at_bound[slot] = False
            filled = self._filled[block_ids[:num_cached]]
            # A head cannot compute what is lacking of a prefix: the target's hidden states there are gone.
            leading = num_cached if filled.all() or self.behind else int(filled.argmin())
            self.computed[slot] = leading * self._block_size
            self._full[slot] = leading

    def passes(self, rows: StepRows) -> Iterator[StepRows]:
        """What to compute before a step, in order: what is lacking of its rows, then guess after guess.

        Rows that sample guess a token each, all that the step's rows sample but the last. Where a row is an upper bound
        so are those of its passes, or each of its tokens has a row, of which one samples; see ``StepRows.unchecked``.
        """
        guesses = num_guesses(rows)
        drafting = np.minimum(guesses, 1)
        # A row without guesses is followed as far as earlier steps computed it: what it samples is not known.
        ends = rows.starts + drafting * (1 - self.behind)
        # A row that drafts computes its last token, come what may: the first guess is sampled behind it.
        self.computed[rows.slots] = np.minimum(self.computed[rows.slots], ends - drafting)
        bounded = None if rows.unchecked is None else rows.unchecked > 0
        if bounded is not None and not self.behind:
            # The last guess was not computed, and may be right; the token before a wrong one is just computed again.
            drafts = bounded & (drafting > 0)
            self.computed[rows.slots[drafts]] = ends[drafts] - 2
        lag = ends - self.computed[rows.slots]
        needed = (drafting > 0) | (rows.counts > 1) | (lag >= self._most_lag)
        if bounded is not None and not self.behind:
            # What is known of the others need not be computed before their guesses are checked.
            needed &= ~bounded | (drafting > 0)
        lacking = ((lag > 0) & needed).nonzero()[0]
        yield from self._catching_up(rows, ends, drafting, lacking)
        if bounded is not None:
            self._at_bound[rows.slots] = bounded & ((drafting > 0) | (self.behind > 0))
        for number in range(1, int(guesses.max(initial=0))):
            of = (guesses > number).nonzero()[0]
            one = np.ones(len(of), np.int64)
            yield _rows(rows, of, ends[of] + number - 1, one, one, number)
        self.computed[rows.slots[lacking]] = ends[lacking]

    def _catching_up(self, rows: StepRows, ends: Ints, drafting: Ints, lacking: Ints) -> Iterator[StepRows]:
        """Passes of at most the budget's tokens; rows that draft sample in the last of theirs."""
        starts = self.computed[rows.slots].copy()
        # The last token of a row that drafts waits for the pass that samples, and so do all at bounds.
        held = drafting[lacking]
        if rows.unchecked is not None:
            held = np.where(rows.unchecked[lacking] > 0, ends[lacking] - starts[lacking], held)
        while True:
            counts = ends[lacking] - starts[lacking]
            ready = counts - held
            if int(counts.sum()) <= self._budget or not ready.any():
                break
            taken = np.clip(self._budget - (np.cumsum(ready) - ready), 0, ready)
            part = lacking[taken > 0]
            yield _rows(rows, part, starts[part], taken[taken > 0], np.zeros_like(part))
            starts[lacking] += taken
        left, counts = lacking[counts > 0], counts[counts > 0]
        while len(left):
            size = max(1, int(counts.cumsum().searchsorted(self._budget, "right")))
            part, left = left[:size], left[size:]
            yield self._sampling(_rows(rows, part, starts[part], counts[:size], drafting[part]))
            counts = counts[size:]

    def _sampling(self, rows: StepRows) -> StepRows:
        """The last pass that catches up on these rows. A head computes all tokens of a row at bounds, which are where
        the step before had them, and samples behind the last one that was right.
        """
        if rows.unchecked is None or not self.behind:
            return rows
        # Where there is less to compute, for lack of features, only the last one is, wherever that is.
        apart = (rows.unchecked > 0) & (rows.counts > rows.unchecked)
        parts = np.where(apart, rows.counts, 1)
        number = np.where(apart.repeat(parts), numbers(parts), 0)
        num_behind = np.where(apart.repeat(parts), parts.repeat(parts) - 1 - number, 0)
        return StepRows(
            rows.slots.repeat(parts),
            rows.starts.repeat(parts) + number,
            np.where(apart, 1, rows.counts).repeat(parts),
            rows.samples.repeat(parts),
            rows.output_indices.repeat(parts) - num_behind,
            np.where(apart.repeat(parts), -1 - num_behind, rows.unchecked.repeat(parts)),
        )

    def follow(self, rows: StepRows) -> None:
        """The target computes a step of these rows, and leaves what there is to read of it."""

    def lose(self) -> None:
        """The target computes a step that is not followed."""

    def settle(self, rows: StepRows, accepted: Ints, stays: Ints | None = None) -> None:
        """A step is done.

        Args:
            rows: the step's; where they begin does not matter.
            accepted: [num_rows] how many of each row's guesses were right; see ``accepted_of``.
            stays: [num_rows] of their slots when it began; None: nobody has taken any since.
        """
        counts, slots = num_guesses(rows), rows.slots
        if stays is not None and not (stays == self.stays[slots]).all():
            there = (stays == self.stays[slots]).nonzero()[0]
            counts, slots, accepted = counts[there], slots[there], accepted[there]
        self._settle(slots, counts, accepted)
        self._at_bound[slots] = False
        full = self.computed[slots] // self._block_size
        before = self._full[slots]
        for index in (full > before).nonzero()[0].tolist():
            slot, which = slots[index], slice(before[index], full[index])
            blocks = self._block_table[slot, which]
            self._filled[blocks[self._times_given[blocks] == self._given[slot, which]]] = True
            self._full[slot] = full[index]

    def _settle(self, slots: Ints, counts: Ints, accepted: Ints) -> None:
        """So many of the guesses of these slots were right."""
        at_bound = self._at_bound[slots]
        # A guess was computed when the one behind it was made: all but the last. A head computes them again.
        more = np.minimum(accepted, np.maximum(counts - 1, 0)) if not self.behind else 0
        self.computed[slots] += np.where(at_bound, accepted - counts, more)


class HeadProgress(DraftProgress):
    """How far a head has followed each request, if there are features of the tokens of steps that it followed.

    What a row lacks otherwise, having been computed in a step that the head did not follow, it never sees; its guesses
    may be worse for it.

    Args:
        max_num_seqs, max_blocks, num_blocks, block_size, budget: see ``DraftProgress``.
        forgets: features stay only until the next step that the head follows, so it computes all that it can of a
            step's rows before that step; what a row lacks for having been left out of a step is lost as well.

    Attributes:
        firsts: [max_num_seqs] first of the positions of each slot that there are features of, before or behind those
            that are written.
    """

    def __init__(
        self, max_num_seqs: int, max_blocks: int, num_blocks: int, block_size: int, budget: int, forgets: bool
    ) -> None:
        most_lag = 1 if forgets else MOST_LAG
        super().__init__(max_num_seqs, max_blocks, num_blocks, block_size, budget, behind=1, most_lag=most_lag)
        self.firsts = np.zeros(max_num_seqs, np.int64)
        # By slot, the position behind the last of them; none end at -1.
        self._ends = np.full(max_num_seqs, -1, np.int64)
        self._forgets = forgets

    def append(self, slot: int, first: int, block_ids: Ints, num_cached_tokens: int | None = None) -> None:
        """See ``DraftProgress.append``."""
        super().append(slot, first, block_ids, num_cached_tokens)
        if num_cached_tokens is not None:
            self._ends[slot] = -1

    def passes(self, rows: StepRows) -> Iterator[StepRows]:
        """See ``DraftProgress.passes``. A row that must guess and has no features makes do with what it finds."""
        least = np.where(self.has_features(rows), self.firsts[rows.slots], rows.starts)
        self.computed[rows.slots] = np.maximum(self.computed[rows.slots], least)
        yield from super().passes(rows)

    def follow(self, rows: StepRows) -> None:
        """See ``DraftProgress.follow``."""
        if self._forgets:
            self._ends[:] = -1
        self.firsts[rows.slots] = np.where(self.has_features(rows), self.firsts[rows.slots], rows.starts)
        self._ends[rows.slots] = rows.starts + rows.counts

    def lose(self) -> None:
        """See ``DraftProgress.lose``: what there was to read may be overwritten."""
        if self._forgets:
            self._ends[:] = -1

    def has_features(self, rows: StepRows) -> npt.NDArray[np.bool_]:
        """[num_rows] whether there are features of the tokens up to a step's rows."""
        has: npt.NDArray[np.bool_] = self._ends[rows.slots] == rows.starts
        return has

    def _settle(self, slots: Ints, counts: Ints, accepted: Ints) -> None:
        wrong = counts - accepted
        self.firsts[slots] -= np.where(self._at_bound[slots], wrong, 0)
        self._ends[slots] = np.maximum(self._ends[slots] - wrong, -1)
        super()._settle(slots, counts, accepted)


def num_guesses(rows: StepRows) -> Ints:
    """[num_rows] guesses of each row, if a draft model makes them all."""
    return np.maximum(rows.samples - 1, 0)


def accepted_of(rows: StepRows, guessed: Sequence[int], chosen: Ints) -> Ints:
    """[num_rows] how many of each row's guesses were right before the first that was not.

    Args:
        rows: of a step.
        guessed: what was guessed for them, row after row.
        chosen: what they sampled, row after row.
    """
    return _accepted(rows, num_guesses(rows), np.array(guessed, np.int64), chosen)


def _accepted(rows: StepRows, counts: Ints, guessed: Ints, chosen: Ints) -> Ints:
    starts, first_samples = counts.cumsum() - counts, rows.samples.cumsum() - rows.samples
    checked = np.arange(len(guessed)) + (first_samples - starts).repeat(counts)
    # As if behind the last one there were another that was wrong.
    is_wrong = np.ones(len(guessed) + 1, np.bool_)
    is_wrong[:-1] = chosen[checked] != guessed
    wrong = is_wrong.nonzero()[0]
    accepted: Ints = np.minimum(wrong[wrong.searchsorted(starts)] - starts, counts)
    return accepted


def _rows(rows: StepRows, of: Ints, starts: Ints, counts: Ints, samples: Ints, number: int = 0) -> StepRows:
    unchecked = None if rows.unchecked is None else rows.unchecked[of]
    return StepRows(rows.slots[of], starts, counts, samples, rows.output_indices[of] + number, unchecked)
