"""What the tuner asks of those who compile and of those who time: records and the two protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from parhelion.ops.contract import Contract
from parhelion.ops.kernel_timer import Timing
from parhelion.platform.measure import Summary
from parhelion.tuning.programs import Program


@dataclass(frozen=True)
class Trial:
    """One thing to time for a row.

    Attributes:
        provider: ``helion``, ``torch``, ``inductor`` ...
        config: the op's; None for providers that have none.
        programs: what was built for it; empty for providers that have no tile programs.
    """

    provider: str
    config: Any | None
    programs: tuple[Program, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a trial.

    Attributes:
        provider, config: of the trial.
        time_us: microseconds of one launch; None if it failed.
        rel_err: the largest relative error of an output beside the contract's reference; 0 if it was not compared.
        problem: why it failed or was rejected, in words; None if all is well.
        workspace_bytes: memory beside inputs and outputs that a launch takes.
    """

    provider: str
    config: Any | None
    time_us: Summary | None
    rel_err: float = 0.0
    problem: str | None = None
    workspace_bytes: int = 0


@dataclass(frozen=True)
class TimingJob:
    """The trials of one row.

    Attributes:
        contract: which.
        num_tokens: the M that is measured.
        trials: in the order in which they are timed.
        timing: how often each.
        check: compare outputs with the reference as well, once a trial.
    """

    contract: Contract
    num_tokens: int
    trials: tuple[Trial, ...]
    timing: Timing
    check: bool


class Timer(Protocol):
    """Who times trials on the device."""

    def run(self, job: TimingJob, deadline_s: float) -> Iterator[tuple[int, Outcome]]:
        """Each trial's number and outcome, as they are done; none after ``deadline_s`` seconds."""
        ...

    def floor_us(self, contract: Contract, num_tokens: int) -> float:
        """Microseconds that the device needs at least."""
        ...

    def launch_us(self, contract: Contract, num_tokens: int, trial: Trial) -> float | None:
        """Microseconds of Python for one launch outside of a graph, outputs included; None if it fails."""
        ...


Request = tuple[Contract, int, Any]
"""A contract, a bucket of M and a config: all programs that serve there, or only those for ``Timed``."""


def no_more() -> Sequence[Request]:
    """Nothing is added to what a compiler was given."""
    return ()


class Compiler(Protocol):
    """Who builds candidates, on all processors."""

    def compile(
        self, requests: Sequence[Request], more: Callable[[], Sequence[Request]] = no_more
    ) -> Iterator[tuple[int, tuple[Program, ...] | str, float]]:
        """Each request's number, its programs or why there are none, and processor seconds, as they are done.

        Args:
            more: asked now and then for further requests, which are numbered on from the last one.
        """
        ...
