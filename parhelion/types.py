"""Plain records shared by every part: what a user asks for and what a user gets. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, TypedDict

from parhelion.errors import InvalidRequestError

FinishReason = Literal["stop", "length", "abort"]

ReplicaStatus = Literal["starting", "serving", "waiting", "given_up"]

MAX_LOGPROBS = 20
"""The most alternatives that ``logprobs`` and ``prompt_logprobs`` may ask for."""


class TokensPrompt(TypedDict):
    """A prompt that is already tokenized."""

    prompt_token_ids: Sequence[int]


Prompt = str | TokensPrompt


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How to choose the tokens of one request. Names and meanings are the field's (OpenAI, Hugging Face, vLLM).

    Attributes:
        n: completions to return for the prompt.
        temperature: 0 is greedy; otherwise the logits are divided by it.
        top_k: keep the k likeliest tokens; 0 or -1 keeps all.
        top_p: keep the smallest set of likeliest tokens whose probability reaches top_p (Holtzman et al., 2019).
        min_p: drop tokens less likely than min_p times the likeliest (Nguyen et al., 2024).
        repetition_penalty: divide positive (multiply negative) logits of tokens seen in prompt or output
            (Keskar et al., 2019).
        presence_penalty: subtracted once from each token present in the output.
        frequency_penalty: subtracted once per occurrence in the output.
        logit_bias: added to the logits of the given token ids.
        seed: same seed, same text, whatever else runs beside it. None draws a fresh one. With n > 1, completion i
            uses seed + i.
        stop: strings that end the text; they are cut off unless include_stop_str_in_output.
        stop_token_ids: ids that end the text besides the model's own end-of-sequence ids.
        min_tokens: end-of-sequence and stop ids are masked, and stop strings ignored, before this many tokens.
        max_tokens: most tokens to generate; None means up to the model's length.
        ignore_eos: go on after the end-of-sequence token.
        logprobs: return the log-probability of each generated token and of that many alternatives (0..20).
        prompt_logprobs: the same for prompt tokens.
        skip_special_tokens: leave special tokens out of the text.
        include_stop_str_in_output: keep the stop string in the text.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    min_tokens: int = 0
    max_tokens: int | None = 16
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        _check_int("n", self.n, 1, 1 << 16)
        self._set_float("temperature", 0.0, 100.0)
        _check_int("top_k", self.top_k, -1, 1 << 31)
        self._set_float("top_p", 0.0, 1.0, open_low=True)
        self._set_float("min_p", 0.0, 1.0)
        self._set_float("repetition_penalty", 0.0, 100.0, open_low=True)
        self._set_float("presence_penalty", -2.0, 2.0)
        self._set_float("frequency_penalty", -2.0, 2.0)
        _check_int("min_tokens", self.min_tokens, 0, 1 << 31)
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, 1 << 31)
            if self.min_tokens > self.max_tokens:
                raise InvalidRequestError(
                    f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", "min_tokens"
                )
        if self.seed is not None:
            _check_int("seed", self.seed, -(1 << 63), (1 << 63) - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if (value := getattr(self, name)) is not None:
                _check_int(name, value, 0, MAX_LOGPROBS)
        if any(not isinstance(s, str) or not s for s in self.stop):
            raise InvalidRequestError("stop must hold non-empty strings", "stop")
        for token_id, bias in (self.logit_bias or {}).items():
            if not math.isfinite(bias) or abs(bias) > 100:
                raise InvalidRequestError(
                    f"logit_bias for token {token_id} is {bias}; it must lie in -100..100", "logit_bias"
                )
        if self.logit_bias:
            object.__setattr__(
                self, "logit_bias", {token_id: float(bias) for token_id, bias in self.logit_bias.items()}
            )

    def _set_float(self, name: str, low: float, high: float, open_low: bool = False) -> None:
        """Check a number and keep it as a plain float: numpy's, which are floats too, cannot be sent to an engine."""
        _check_float(name, getattr(self, name), low, high, open_low)
        object.__setattr__(self, name, float(getattr(self, name)))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def _check_int(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, not {value!r}", name)
    if not low <= value <= high:
        raise InvalidRequestError(f"{name} is {value}; it must lie in {low}..{high}", name)


def _check_float(name: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(f"{name} must be a number, not {value!r}", name)
    if not (low < value or (value == low and not open_low)) or value > high or not math.isfinite(value):
        bracket = "(" if open_low else "["
        raise InvalidRequestError(f"{name} is {value}; it must lie in {bracket}{low}, {high}]", name)


@dataclass(frozen=True)
class Logprob:
    """One token's log-probability (natural log, of the model's own distribution) and its rank (1 is the likeliest)."""

    logprob: float
    rank: int
    decoded_token: str = ""


TokenLogprobs = dict[int, Logprob]
"""Token id to its log-probability: the chosen token first, then the likeliest alternatives in order."""


@dataclass
class CompletionOutput:
    """One completion of a prompt, as far as it has got.

    ``token_ids`` and ``logprobs`` grow in place while a request streams: take a copy to keep a snapshot.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestTimes:
    """Seconds on the monotonic clock of the process that took the request."""

    arrival: float
    first_token: float | None = None
    last_token: float | None = None


@dataclass
class RequestOutput:
    """What a request has produced so far; ``finished`` marks the last one."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    times: RequestTimes | None = None


@dataclass(frozen=True, kw_only=True)
class ReplicaState:
    """One of several engines behind one front end.

    Attributes:
        replica: its number, from 0.
        status: ``waiting`` is for the moment at which it is started again; ``given_up`` means that it never is.
        process: id of its process, if it has one.
        restarts: times it was started again.
        error: what ended it last.
        retry_s: seconds that it waits.
    """

    replica: int
    status: ReplicaStatus
    process: int | None = None
    restarts: int = 0
    error: str | None = None
    retry_s: float | None = None

    @property
    def serves(self) -> bool:
        return self.status == "serving"


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Counts of the engine at one moment; those named ``*_total`` only ever grow.

    Attributes:
        num_running, num_waiting: requests.
        num_blocks: KV blocks in the storage.
        num_blocks_in_use: blocks that a request refers to.
        num_blocks_cached: blocks that no request refers to but whose content may be reused.
        prefix_cache_queried_tokens_total, prefix_cache_hit_tokens_total: prompt tokens looked up and found.
        preemptions_total: times a running request gave up its blocks.
        prompt_tokens_total, generation_tokens_total: tokens taken in and sampled.
        steps_total: steps executed.
        guessed_tokens_total, accepted_tokens_total: tokens that were guessed ahead, and those guessed right.
        checked_rows_total: times that a request's guesses were checked, all of them at once.
        speculation_gain: tokens a second of late with guesses over those without; 1 where none were made.
        num_graphs, graph_bytes: CUDA graphs captured so far, and the device memory that they take.
        replicas: those behind one front end, whose sums the other counts are; empty where there is one engine.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_blocks_in_use: int = 0
    num_blocks_cached: int = 0
    prefix_cache_queried_tokens_total: int = 0
    prefix_cache_hit_tokens_total: int = 0
    preemptions_total: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    steps_total: int = 0
    guessed_tokens_total: int = 0
    accepted_tokens_total: int = 0
    checked_rows_total: int = 0
    speculation_gain: float = 1.0
    num_graphs: int = 0
    graph_bytes: int = 0
    replicas: tuple[ReplicaStats, ...] = ()

    def since(self, before: EngineStats) -> EngineStats:
        """Counts of an interval: what was added to those named ``*_total`` since ``before``; the others as they are."""
        totals = [field.name for field in fields(EngineStats) if field.name.endswith("_total")]
        return replace(self, **{name: getattr(self, name) - getattr(before, name) for name in totals})

    @property
    def kv_cache_usage(self) -> float:
        """Share of the KV blocks that a request refers to, from 0 to 1; 0 where there are no blocks."""
        return self.num_blocks_in_use / self.num_blocks if self.num_blocks else 0.0

    @property
    def acceptance_rate(self) -> float | None:
        """Share of the guessed tokens that were right; None if there were none."""
        return self.accepted_tokens_total / self.guessed_tokens_total if self.guessed_tokens_total else None

    @property
    def mean_accepted_length(self) -> float | None:
        """Tokens that a request gained at a time when its guesses were checked, the one sampled behind the right ones
        included; None if none were.
        """
        return 1 + self.accepted_tokens_total / self.checked_rows_total if self.checked_rows_total else None


@dataclass(frozen=True, kw_only=True)
class ReplicaStats:
    """A replica and its own counts. Those named ``*_total`` go on where it is started again."""

    state: ReplicaState
    stats: EngineStats
