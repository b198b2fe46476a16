"""The sampling fields of a body, as the engine's parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from parhelion.errors import InvalidRequestError
from parhelion.server.prompts import check_token_ids, short_number
from parhelion.server.protocol import SamplingFields
from parhelion.types import SamplingParams

MAX_STOP = 64
"""Most stop strings and most stop ids: each is looked for at every token."""

_MAX_PRIORITY = 1 << 31
_DEFAULTS = SamplingParams()

_LIKELIEST_ONLY = 1e-6
"""The ``top_p`` for 0, which OpenAI allows: no token that is the likeliest of a vocabulary is less likely than this."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TokenLimits:
    """What a server and its model set: the largest ``n``, and ids below ``vocab_size``."""

    max_n: int
    vocab_size: int


def sampling_params(
    body: SamplingFields, limits: TokenLimits, *, max_tokens: int, logprobs: int | None, prompt_logprobs: int | None
) -> SamplingParams:
    """The body's wishes, checked. The last three are resolved by the endpoint, as their rules differ.

    Raises:
        InvalidRequestError: a value is out of range; it names the field.
    """
    _check_stream_options(body)
    stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
    stop_token_ids = body.stop_token_ids or []
    _check_count("stop", len(stop), MAX_STOP)
    _check_count("stop_token_ids", len(stop_token_ids), MAX_STOP)
    check_token_ids(stop_token_ids, limits.vocab_size, "stop_token_ids")
    check_token_ids(list(body.logit_bias or ()), limits.vocab_size, "logit_bias")
    n = _given(body.n, _DEFAULTS.n)
    if n > limits.max_n:
        raise InvalidRequestError(f"n is {n}; this server returns at most {limits.max_n} completions (max_n)", "n")
    return SamplingParams(
        n=n,
        temperature=_given(body.temperature, _DEFAULTS.temperature),
        top_k=_given(body.top_k, _DEFAULTS.top_k),
        top_p=_LIKELIEST_ONLY if body.top_p == 0 else _given(body.top_p, _DEFAULTS.top_p),
        min_p=_given(body.min_p, _DEFAULTS.min_p),
        repetition_penalty=_given(body.repetition_penalty, _DEFAULTS.repetition_penalty),
        presence_penalty=_given(body.presence_penalty, _DEFAULTS.presence_penalty),
        frequency_penalty=_given(body.frequency_penalty, _DEFAULTS.frequency_penalty),
        logit_bias=body.logit_bias,
        seed=body.seed,
        stop=tuple(stop),
        stop_token_ids=tuple(stop_token_ids),
        min_tokens=_given(body.min_tokens, _DEFAULTS.min_tokens),
        max_tokens=max_tokens,
        ignore_eos=_given(body.ignore_eos, _DEFAULTS.ignore_eos),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        skip_special_tokens=_given(body.skip_special_tokens, _DEFAULTS.skip_special_tokens),
        include_stop_str_in_output=_given(body.include_stop_str_in_output, _DEFAULTS.include_stop_str_in_output),
    )


def asked_max_tokens(body: SamplingFields, least: int = 1) -> tuple[int | None, str]:
    """Tokens that may be generated at most, if the body says so, and the field that says it: the newer name wins.

    Raises:
        InvalidRequestError: fewer than ``least``.
    """
    asked, name = body.max_completion_tokens, "max_completion_tokens"
    if asked is None:
        asked, name = body.max_tokens, "max_tokens"
    if asked is not None and asked < least:
        raise InvalidRequestError(f"{name} is {short_number(asked)}; it must be at least {least}", name)
    return asked, name


def priority_of(body: SamplingFields) -> int:
    """The scheduler's priority; lower goes first, and 0 is usual."""
    priority = body.priority or 0
    if abs(priority) > _MAX_PRIORITY:
        raise InvalidRequestError(
            f"priority is {short_number(priority)}; it must lie in -{_MAX_PRIORITY}..{_MAX_PRIORITY}", "priority"
        )
    return priority


def includes_usage(body: SamplingFields) -> bool:
    """Whether the stream ends with a usage chunk."""
    return bool(body.stream_options and body.stream_options.include_usage)


def _check_stream_options(body: SamplingFields) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError(
            "stream_options needs stream: true; set it or leave the options out", "stream_options"
        )
    if body.stream and body.prompt_logprobs is not None:
        raise InvalidRequestError("prompt_logprobs cannot be streamed; set stream to false", "prompt_logprobs")


def _check_count(name: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidRequestError(f"{name} has {count} entries; at most {limit} are taken", name)


def _given(value: T | None, default: T) -> T:
    return default if value is None else value
