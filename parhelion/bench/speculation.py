"""What guessing tokens ahead did in a benchmark: from the engine's counts before and after, for the report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import httpx

from parhelion.bench.report import Measurement
from parhelion.platform.measure import summarize
from parhelion.types import EngineStats

ACCEPTANCE_RATE = "acceptance rate"
"""The quantity that a report has if tokens were guessed, and only then."""

_SCRAPE_TIMEOUT_S = 10.0
_COUNTS = ("guessed_tokens_total", "accepted_tokens_total", "checked_rows_total")


def summarize_guesses(case: str, rounds: Sequence[EngineStats]) -> list[Measurement]:
    """Acceptance rate (%), mean accepted length (tokens) and measured gain (x) over the rounds.

    Args:
        case: the measurements' case.
        rounds: the counts of each round (see ``EngineStats.since``); the gain is that at its end.

    Returns:
        Nothing if no tokens were guessed; rounds in which none were do not count.
    """
    figures = [
        (100 * each.acceptance_rate, each.mean_accepted_length, each.speculation_gain)
        for each in rounds
        if each.acceptance_rate is not None and each.mean_accepted_length is not None
    ]
    if not figures:
        return []
    rates, lengths, gains = zip(*figures, strict=True)
    return [
        Measurement(case, ACCEPTANCE_RATE, "%", summarize(rates)),
        Measurement(case, "mean accepted length", "tokens", summarize(lengths)),
        Measurement(case, "measured gain", "x", summarize(gains)),
    ]


def read_guess_counts(url: str, api_key: str | None = None) -> EngineStats | None:
    """What a server's ``/metrics`` say of guesses; all else is left at its default.

    Args:
        url: where it answers, without a path.
        api_key: sent with the request.

    Returns:
        None if they cannot be read, or are not those of a Parhelion that counts guesses.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        text = httpx.get(f"{url}/metrics", headers=headers, timeout=_SCRAPE_TIMEOUT_S, trust_env=False).text
    except (httpx.HTTPError, httpx.InvalidURL):
        return None
    samples = dict(re.findall(r"^parhelion_(\w+) (\d[\d.e+-]*)$", text, re.MULTILINE))
    if not samples.keys() >= set(_COUNTS):
        return None
    counts: dict[str, Any] = {name: int(float(samples[name])) for name in _COUNTS}
    return EngineStats(**counts, speculation_gain=float(samples.get("speculation_gain_ratio", 1.0)))
