"""What one launch of ``top_k_top_p_sampling`` leaves to the next of a row: a record of 8 float32 numbers, one spare.

The bound of a row, from which on its tokens are kept, is ``low``; while it is searched it is the largest one in
[low, high) from which on the tokens' count or mass reaches ``goal``. Traced into tile programs.
"""

from __future__ import annotations

import helion.language as hl
import torch

_PHASE, _LOW, _HIGH, _GOAL, _BEYOND, _TOP, _LEAST = range(7)

_DONE, _BY_COUNT, _BY_MASS, _KNOWN, _ALL = 0.0, 1.0, 2.0, 3.0, 4.0
"""Phases: the row has its token; its k-th largest is searched; its nucleus is; its bound is known; it keeps all."""


def first_phase(
    has_token: torch.Tensor, by_count: torch.Tensor, by_mass: torch.Tensor, all_kept: torch.Tensor
) -> torch.Tensor:
    """What a row begins with, as conditions say: the first of them that holds, or a known bound."""
    phase = torch.where(all_kept, _ALL, _KNOWN)
    phase = torch.where(by_count, _BY_COUNT, torch.where(by_mass, _BY_MASS, phase))
    return torch.where(has_token, _DONE, phase)


def next_phase(phase: torch.Tensor, is_settled: torch.Tensor, goes_on: torch.Tensor) -> torch.Tensor:
    """What follows a pass: where the k-th largest is settled, the search of a nucleus goes on if one is wanted."""
    return torch.where(is_settled, torch.where(goes_on, _BY_MASS, _KNOWN), phase)


def is_searched(phase: torch.Tensor) -> torch.Tensor:
    return (phase == _BY_COUNT) | (phase == _BY_MASS)


def is_counted(phase: torch.Tensor) -> torch.Tensor:
    return phase == _BY_COUNT


def wants_all_above(phase: torch.Tensor, goal: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Whether what is searched includes a nucleus of all tokens from the bound of top-k on."""
    return (phase == _BY_COUNT) & (top_p < 1) | (goal < 0)


def has_bound(phase: torch.Tensor) -> torch.Tensor:
    """Rather than keep all."""
    return phase == _KNOWN


def is_drawn(phase: torch.Tensor) -> torch.Tensor:
    """Nothing is left but the draw."""
    return phase >= _KNOWN


def leave_done(state: torch.Tensor, row: int) -> None:
    hl.store(state, [row, _PHASE], _DONE)


def leave_known(state: torch.Tensor, row: int, low: torch.Tensor) -> None:
    hl.store(state, [row, _PHASE], _KNOWN)
    hl.store(state, [row, _LOW], low)


def leave_search(
    state: torch.Tensor,
    row: int,
    phase: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    goal: torch.Tensor,
    beyond: torch.Tensor,
) -> None:
    """What changes from pass to pass."""
    hl.store(state, [row, _PHASE], phase)
    hl.store(state, [row, _LOW], low)
    hl.store(state, [row, _HIGH], high)
    hl.store(state, [row, _GOAL], goal)
    hl.store(state, [row, _BEYOND], beyond)


def leave_row(state: torch.Tensor, row: int, top: torch.Tensor, least: torch.Tensor) -> None:
    """What does not: the row's largest x, and min-p's bound."""
    hl.store(state, [row, _TOP], top)
    hl.store(state, [row, _LEAST], least)


def phase_of(state: torch.Tensor, row: int) -> torch.Tensor:
    return hl.load(state, [row, _PHASE])


def low_of(state: torch.Tensor, row: int) -> torch.Tensor:
    return hl.load(state, [row, _LOW])


def high_of(state: torch.Tensor, row: int) -> torch.Tensor:
    return hl.load(state, [row, _HIGH])


def goal_of(state: torch.Tensor, row: int) -> torch.Tensor:
    """Below 0: minus what part of the mass from ``low`` on."""
    return hl.load(state, [row, _GOAL])


def beyond_of(state: torch.Tensor, row: int) -> torch.Tensor:
    """The tally from ``high`` on."""
    return hl.load(state, [row, _BEYOND])


def top_of(state: torch.Tensor, row: int) -> torch.Tensor:
    return hl.load(state, [row, _TOP])


def least_of(state: torch.Tensor, row: int) -> torch.Tensor:
    return hl.load(state, [row, _LEAST])
