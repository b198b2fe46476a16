"""Steps that are on their way, and what was wrong with what they had been planned on."""

from __future__ import annotations

import threading

import msgspec
import numpy as np

from parhelion.engine.device.drafter import PendingDraft
from parhelion.engine.device.host_ids import HostIds
from parhelion.engine.host.sampling import HostSampler
from parhelion.engine.step_layout import Ints, Samples, StepRows, samples_of
from parhelion.engine.step_result import Drafted, StepResult


class WrongGuesses:
    """How many guesses of each slot's last step were wrong, as far as steps have been waited for, in their order.

    Args:
        max_num_seqs: slots.

    Attributes:
        by_slot: [max_num_seqs].
        lock: whoever waits for a step need not be on the thread that hands over the next one.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.by_slot = np.zeros(max_num_seqs, np.int64)
        self.lock = threading.RLock()

    def off(self, rows: StepRows) -> Ints:
        """[num_rows] how far each row of a step begins before the place that it was planned for; the steps before it
        have been waited for.
        """
        if rows.unchecked is None:
            return np.zeros_like(rows.slots)
        off: Ints = np.where(rows.unchecked > 0, self.by_slot[rows.slots], 0)
        return off

    def learn(self, draft: PendingDraft, drafted: Drafted, chosen: Ints) -> Ints:
        """A step with such guesses has sampled these, row after row.

        Returns:
            [num_rows] how many of each row's guesses were wrong.
        """
        wrong = draft.check(drafted, chosen)
        self.by_slot[draft.rows.slots] = wrong
        return wrong


class Pending:
    """A step on its way; ``wait`` blocks until the device has got there.

    Args:
        number: of the steps that were begun before it.
        rows: as they were planned, guesses in rows of their own.
        ids: of the rows, which the device is writing. They are read once, before ``is_over``.
        stays: of the rows.
        draft: the step's guesses, if the device made any.
        wrong: learns how many were wrong.
    """

    def __init__(
        self,
        number: int,
        rows: StepRows,
        ids: HostIds,
        stays: Ints,
        draft: PendingDraft | None,
        wrong: WrongGuesses,
    ) -> None:
        self.number = number
        self.ids = ids
        self._rows = rows
        self._samples = samples_of(rows)
        self._stays = stays
        self._draft = draft
        self._wrong = wrong
        self._chosen = np.zeros(0, np.int64)
        self._result: StepResult | None = None

    @property
    def is_over(self) -> bool:
        """Somebody has waited for it."""
        return self._result is not None

    def wait(self) -> StepResult:
        """The step's result."""
        if self._result is None:
            self.ids.done.synchronize()
            with self._wrong.lock:
                if self._result is None:
                    self._result = self._read()
        return self._result

    def _read(self) -> StepResult:
        if self._rows.unchecked is not None:
            self._samples = _moved(self._samples, self._wrong.off(self._rows))
        self._chosen = self.ids.array[self._samples.rows]
        drafted = None
        if self._draft is not None:
            drafted = self._draft.read(self._wrong.by_slot)
            self._wrong.learn(self._draft, drafted, self._chosen)
        return StepResult(self._chosen.tolist(), [None] * len(self._chosen), [], drafted)

    def note(self, host: HostSampler) -> None:
        """Let the host's sampler know what was sampled, once somebody has waited for it."""
        host.note(self._samples, self._chosen, self._stays)


def _moved(samples: Samples, off: Ints) -> Samples:
    """What a step samples whose rows begin so far before the places that they were planned for."""
    less = off[samples.rows]
    return msgspec.structs.replace(
        samples, positions=samples.positions - less, output_indices=samples.output_indices - less
    )
