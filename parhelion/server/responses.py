"""The bodies that the server sends: OpenAI's shapes, encoded straight to bytes (a chunk is made for every token)."""

from __future__ import annotations

import msgspec


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How much of the prompt was found in the prefix cache."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request: prompts counted once each, all completions together."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class PromptLogprob(msgspec.Struct, frozen=True):
    """An entry of ``prompt_logprobs`` (vLLM's extension)."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]
"""For each prompt token, its id and those of the alternatives to their log-probabilities; none for the first."""


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """``/v1/completions``: parallel lists, one entry a token; ``text_offset`` counts characters of the text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One completion, or what a chunk adds to it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType | None = msgspec.UNSET


class Completion(msgspec.Struct, frozen=True):
    """Answer of ``/v1/completions``; also a chunk of its stream."""

    id: str
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: str = "text_completion"


class TopLogprob(msgspec.Struct, frozen=True):
    """A likely token at one position. ``bytes`` are those it adds to the text."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True):
    """A generated token and the likeliest ones in its place."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """``/v1/chat/completions``: one entry a generated token."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(msgspec.Struct, frozen=True):
    """What the model said."""

    content: str
    role: str = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One whole answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """Answer of ``/v1/chat/completions``."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: str = "chat.completion"
    prompt_logprobs: PromptLogprobs | msgspec.UnsetType | None = msgspec.UNSET


class ChatDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a chunk adds to a message."""

    role: str | None = None
    content: str | None = None


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """What a chunk adds to one answer."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: int | str | msgspec.UnsetType | None = msgspec.UNSET


class ChatCompletionChunk(msgspec.Struct, frozen=True):
    """An event of a chat stream."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    object: str = "chat.completion.chunk"


class ModelCard(msgspec.Struct, frozen=True):
    """A served model; ``max_model_len`` is vLLM's extension."""

    id: str
    created: int
    max_model_len: int
    owned_by: str = "parhelion"
    object: str = "model"


class ModelList(msgspec.Struct, frozen=True):
    """Answer of ``/v1/models``."""

    data: list[ModelCard]
    object: str = "list"


class TokenizeResponse(msgspec.Struct, frozen=True):
    """Answer of ``/tokenize``."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeResponse(msgspec.Struct, frozen=True):
    """Answer of ``/detokenize``."""

    prompt: str


class ReplicaHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """One replica: ``starting``, ``serving``, ``waiting`` to be started again, or ``given_up``.

    ``error`` is what ended it last, ``retry_s`` how long it waits.
    """

    replica: int
    status: str
    restarts: int
    error: str | None = None
    retry_s: float | None = None


class Health(msgspec.Struct, frozen=True, omit_defaults=True):
    """Answer of ``/health``: ``ok``, ``degraded`` (some replicas do not serve), ``draining`` or ``engine_dead``.

    Where there are replicas, ``serving`` says how many of them do.
    """

    status: str
    serving: int | None = None
    replicas: list[ReplicaHealth] = []


class Version(msgspec.Struct, frozen=True):
    """Answer of ``/version``."""

    version: str
