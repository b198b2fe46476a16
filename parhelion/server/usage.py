"""Token counts of a request, for its answer and for its line in the log."""

from __future__ import annotations

from collections.abc import Iterable

from parhelion.server.access_log import RequestRecord
from parhelion.server.responses import PromptTokensDetails, Usage
from parhelion.types import RequestOutput


def usage_of(outputs: Iterable[RequestOutput]) -> Usage:
    """Each prompt counts once, whatever its n; all completions count."""
    prompt = completion = cached = 0
    for output in outputs:
        prompt += len(output.prompt_token_ids)
        cached += output.num_cached_tokens
        completion += sum(len(one.token_ids) for one in output.outputs)
    return Usage(prompt, completion, prompt + completion, PromptTokensDetails(cached))


def note_usage(record: RequestRecord, outputs: Iterable[RequestOutput]) -> None:
    """Put the counts, final or not, into the request's record."""
    usage = usage_of(outputs)
    record.prompt_tokens = usage.prompt_tokens
    record.completion_tokens = usage.completion_tokens
