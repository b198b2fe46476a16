"""What the host remembers of the tokens of every slot."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from parhelion.engine.host.sampling import HostSampler
from parhelion.engine.sampling_state import SamplingState
from parhelion.engine.step_layout import StepRows, samples_of


class Stays(np.ndarray[Any, Any]):
    """Lets another thread admit a request the moment that these are looked up."""

    admit: threading.Thread | None = None

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if self.admit is not None:
            admit, self.admit = self.admit, None
            admit.start()
            # It may have to wait until whoever looks is done.
            admit.join(0.1)
        return found


def test_a_late_token_of_an_aborted_request_never_gets_among_those_of_the_next_one_in_its_slot() -> None:
    sampler = HostSampler(None, SamplingState(2), 2, 8)  # type: ignore[arg-type]
    sampler.admit(1, np.array([5, 6]))
    one = np.ones(1, np.int64)
    rows = StepRows(slots=one, starts=one, counts=one, samples=one, output_indices=0 * one)
    stays = sampler.stays(rows)
    watched = sampler._stays.view(Stays)
    watched.admit = thread = threading.Thread(target=sampler.admit, args=(1, np.array([7, 8, 9, 10])))
    sampler._stays = watched
    sampler.note(samples_of(rows), np.array([99]), stays)
    thread.join()
    assert sampler.tokens[1, :4].tolist() == [7, 8, 9, 10]
    sampler.note(samples_of(rows), np.array([99]), stays)
    assert sampler.tokens[1, :4].tolist() == [7, 8, 9, 10]
