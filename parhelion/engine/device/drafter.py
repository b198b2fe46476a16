"""Guesses made on the device, by a draft model or a head: handed over before the step that checks them, and read back
with it.
"""

from __future__ import annotations

import numpy as np
import torch

from parhelion.engine.device.buckets import Buckets
from parhelion.engine.device.graphs import EagerSteps, GraphCache
from parhelion.engine.device.step import Mode, Step
from parhelion.engine.device.step_queue import DeviceQueue
from parhelion.engine.drafts.progress import DraftProgress, accepted_of, num_guesses
from parhelion.engine.step_layout import Ints, StepRows, tokens_apart
from parhelion.engine.step_result import Drafted
from parhelion.platform.streams import Mark, mark, pinned

_NONE = np.zeros(0, np.int64)


class DeviceDrafter:
    """Lets a draft model follow the requests and guess what they say next; nothing waits for the device.

    The model reads the same tables as the target and writes its guesses into the table of tokens, where the step that
    checks them finds them. It may do so before the guesses of the step before are read back: as the target's rows do,
    those of its passes find on the device where they begin.

    Args:
        step: the draft model's, or the head's.
        runner: runs it.
        queue: brings its integers to the device.
        buckets: sizes.
        progress: what it has computed.
        device: where.
    """

    def __init__(
        self,
        step: Step,
        runner: GraphCache | EagerSteps,
        queue: DeviceQueue,
        buckets: Buckets,
        progress: DraftProgress,
        device: torch.device,
    ) -> None:
        self.progress = progress
        self._step = step
        self._runner = runner
        self._queue = queue
        self._buckets = buckets
        self._device = device

    def warm_up(self) -> None:
        """Run a decode row, two rows of a slot and a prompt through the model, so that what compiles at first use has
        compiled.
        """
        for bucket in self._buckets.smallest():
            self._queue.send_padding(bucket)
            for mode in (Mode.GREEDY, Mode.DRAW):
                self._step.run(self._queue.ints, bucket, mode)

    def capture_all(self) -> None:
        """Run greedily what has one token a row, the largest first, so that its graphs are captured."""
        for bucket in self._buckets.one_token_a_row():
            self._queue.send_padding(bucket)
            self._runner.run(self._step, bucket, Mode.GREEDY)

    def draft(self, rows: StepRows, mode: Mode) -> PendingDraft:
        """Catch up on a step's rows, and guess all that they sample but the last.

        Args:
            rows: the step's.
            mode: how it samples; guesses are chosen on the device in any case.
        """
        began = mark(self._device)
        num_tokens, guesses = 0, list[tuple[StepRows, torch.Tensor]]()
        for each in self.progress.passes(rows):
            apart = self._buckets.takes_apart(each)
            packed = tokens_apart(each) if apart else each
            bucket = self._buckets.of(packed, apart or _has_choices(packed))
            self._queue.send(packed, bucket)
            outputs = self._runner.run(self._step, bucket, Mode.DRAW if mode is Mode.HOST else mode)
            num_tokens += int(each.counts.sum())
            if packed.samples.any():
                ids = pinned(bucket.num_rows, self._device, outputs.token_ids.dtype)
                ids.copy_(outputs.token_ids, non_blocking=True)
                guesses.append((packed, ids))
        return PendingDraft(rows, guesses, num_tokens, (began, mark(self._device)), self.progress)


def _has_choices(rows: StepRows) -> bool:
    """Whether there are rows of one slot, one of which samples."""
    return rows.unchecked is not None and bool((rows.unchecked < 0).any())


class PendingDraft:
    """Guesses on their way.

    Args:
        rows: the step's.
        guesses: of each pass that samples its rows, and [num_rows] ids on the host.
        num_tokens: that were computed.
        marks: where that began and ended.
        progress: learns which guesses were right.

    Attributes:
        rows: the step's.
    """

    def __init__(
        self,
        rows: StepRows,
        guesses: list[tuple[StepRows, torch.Tensor]],
        num_tokens: int,
        marks: tuple[Mark, Mark],
        progress: DraftProgress,
    ) -> None:
        self.rows = rows
        self._guesses = guesses
        self._num_tokens = num_tokens
        self._marks = marks
        self._progress = progress
        self._stays = progress.stays[rows.slots]
        self._accepted: Ints | None = None

    def read(self, wrong: Ints) -> Drafted:
        """What was guessed, once the device has got there.

        Args:
            wrong: by slot, how many guesses of the step before were wrong.
        """
        slots, tokens = [_NONE], [_NONE]
        for rows, ids in self._guesses:
            samples = rows.samples > 0
            if rows.unchecked is not None:
                samples &= (rows.unchecked >= 0) | (-1 - rows.unchecked == wrong[rows.slots])
            which = samples.nonzero()[0]
            slots.append(rows.slots[which])
            tokens.append(ids.numpy()[which])
        # Row after row, and of each row as they were made.
        place = np.zeros(1 + int(self.rows.slots.max()), np.int64)
        place[self.rows.slots] = np.arange(len(self.rows.slots))
        order = place[np.concatenate(slots)].argsort(kind="stable")
        began, ended = self._marks
        return Drafted(np.concatenate(tokens)[order].tolist(), self._num_tokens, began.seconds_until(ended))

    def check(self, drafted: Drafted, chosen: Ints) -> Ints:
        """The step is done, and these tokens were sampled, row after row.

        Returns:
            [num_rows] how many of each row's guesses were wrong.
        """
        self._accepted = accepted_of(self.rows, drafted.token_ids, chosen)
        wrong: Ints = num_guesses(self.rows) - self._accepted
        return wrong

    def settle(self) -> None:
        """Let the draft model know what was right, which has been checked."""
        assert self._accepted is not None, "the step was waited for"
        self._progress.settle(self.rows, self._accepted, self._stays)
