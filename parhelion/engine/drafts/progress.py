"""How far a draft model has followed each request, and which rows it computes before a step.

Its keys and values lie in the same blocks as the target's, in tensors of its own. So a cached prefix brings them along,
if the draft model had computed them; where it had not, it does so when the request is drafted for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from parhelion.engine.step_layout import Ints, StepRows

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
        self.behind = behind
        self._block_table = np.zeros((max_num_seqs, max_blocks), np.int64)
        self._filled = np.zeros(num_blocks, np.bool_)
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
        if num_cached_tokens is not None:
            filled = self._filled[block_ids[:num_cached]]
            # A head cannot compute what is lacking of a prefix: the target's hidden states there are gone.
            leading = num_cached if filled.all() or self.behind else int(filled.argmin())
            self.computed[slot] = leading * self._block_size
            self._full[slot] = leading

    def passes(self, rows: StepRows) -> Iterator[StepRows]:
        """What to compute before a step, in order: what is lacking of its rows, then guess after guess.

        Rows that sample guess a token each, all that the step's rows sample but the last.
        """
        guesses = num_guesses(rows)
        drafting = np.minimum(guesses, 1)
        # A row without guesses is followed as far as earlier steps computed it: what it samples is not known.
        ends = rows.starts + drafting * (1 - self.behind)
        # A row that drafts computes its last token, come what may: the first guess is sampled behind it.
        self.computed[rows.slots] = np.minimum(self.computed[rows.slots], ends - drafting)
        lag = ends - self.computed[rows.slots]
        needed = (drafting > 0) | (rows.counts > 1) | (lag >= self._most_lag)
        lacking = ((lag > 0) & needed).nonzero()[0]
        yield from self._catching_up(rows, ends, drafting, lacking)
        for number in range(1, int(guesses.max(initial=0))):
            of = (guesses > number).nonzero()[0]
            one = np.ones(len(of), np.int64)
            yield _rows(rows, of, ends[of] + number - 1, one, one, number)
        self.computed[rows.slots[lacking]] = ends[lacking]

    def _catching_up(self, rows: StepRows, ends: Ints, drafting: Ints, lacking: Ints) -> Iterator[StepRows]:
        """Passes of at most the budget's tokens; all rows that draft sample in the last one."""
        starts = self.computed[rows.slots].copy()
        while True:
            counts = ends[lacking] - starts[lacking]
            if int(counts.sum()) <= self._budget:
                break
            # The last token of a row that drafts waits for the pass that samples.
            ready = counts - drafting[lacking]
            taken = np.clip(self._budget - (np.cumsum(ready) - ready), 0, ready)
            part = lacking[taken > 0]
            yield _rows(rows, part, starts[part], taken[taken > 0], np.zeros_like(part))
            starts[lacking] += taken
        if len(lacking):
            left = lacking[counts > 0]
            yield _rows(rows, left, starts[left], counts[counts > 0], drafting[left])

    def settle(self, rows: StepRows, guessed: Sequence[int], chosen: Ints) -> Ints:
        """A step is done.

        Args:
            rows: the step's.
            guessed: what was guessed for them, row after row.
            chosen: what they sampled, row after row.

        Returns:
            [num_rows] how many of each row's guesses were right, up to the first that was not.
        """
        counts = num_guesses(rows)
        accepted = _accepted(rows, counts, np.array(guessed, np.int64), chosen)
        if not self.behind:
            # A guess was computed when the one behind it was made: all but the last.
            drafted = counts > 0
            self.computed[rows.slots[drafted]] += np.minimum(accepted, counts - 1)[drafted]
        full = self.computed[rows.slots] // self._block_size
        before = self._full[rows.slots]
        for row in (full > before).nonzero()[0].tolist():
            slot = rows.slots[row]
            self._filled[self._block_table[slot, before[row] : full[row]]] = True
            self._full[slot] = full[row]
        return accepted


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

    def has_features(self, rows: StepRows) -> npt.NDArray[np.bool_]:
        """[num_rows] whether there are features of the tokens up to a step's rows."""
        has: npt.NDArray[np.bool_] = self._ends[rows.slots] == rows.starts
        return has

    def settle(self, rows: StepRows, guessed: Sequence[int], chosen: Ints) -> Ints:
        """See ``DraftProgress.settle``."""
        accepted = super().settle(rows, guessed, chosen)
        if self._forgets:
            self._ends[:] = -1
        self.firsts[rows.slots] = np.where(self.has_features(rows), self.firsts[rows.slots], rows.starts)
        self._ends[rows.slots] = rows.starts + rows.counts - num_guesses(rows) + accepted
        return accepted


def num_guesses(rows: StepRows) -> Ints:
    """[num_rows] guesses of each row, if a draft model makes them all."""
    return np.maximum(rows.samples - 1, 0)


def _accepted(rows: StepRows, counts: Ints, guessed: Ints, chosen: Ints) -> Ints:
    """[num_rows] how many of each row's guesses were right before the first that was not."""
    starts, first_samples = counts.cumsum() - counts, rows.samples.cumsum() - rows.samples
    checked = np.arange(len(guessed)) + (first_samples - starts).repeat(counts)
    # As if behind the last one there were another that was wrong.
    is_wrong = np.ones(len(guessed) + 1, np.bool_)
    is_wrong[:-1] = chosen[checked] != guessed
    wrong = is_wrong.nonzero()[0]
    accepted: Ints = np.minimum(wrong[wrong.searchsorted(starts)] - starts, counts)
    return accepted


def _rows(rows: StepRows, of: Ints, starts: Ints, counts: Ints, samples: Ints, number: int = 0) -> StepRows:
    return StepRows(rows.slots[of], starts, counts, samples, rows.output_indices[of] + number)
