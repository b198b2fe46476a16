"""The bodies that clients send. Field names are OpenAI's; those that OpenAI lacks are vLLM's.

A field that is not declared here is refused by name. Fields marked as ignored are accepted because they change nothing
in the answer.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

TokenIds = list[int]
PromptInput = str | list[str | int | list[int]]
"""A text, several texts, the token ids of one prompt, or those of several. Mixtures are refused later, by name."""


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options of a stream: ``include_usage`` adds a last chunk that holds the usage and no choice."""

    include_usage: bool | None = None
    include_obfuscation: Any = None  # ignored: padding against traffic analysis


class SamplingFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both kinds of completion accept. Defaults and limits are those of ``parhelion.types.SamplingParams``."""

    model: str | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # vLLM's extensions
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None

    # Ignored: they concern OpenAI's accounts, storage and routing.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None


class CompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of ``POST /v1/completions``."""

    prompt: Annotated[PromptInput, msgspec.Meta(examples=["Once upon a time"])]
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None
    logprobs: int | None = None
    add_special_tokens: bool | None = None


ROLES = ("system", "developer", "user", "assistant", "tool", "function")
"""Who may speak in a chat; others are refused later, by name."""


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message's content; only ``text`` parts are supported, so that others need no declared fields."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn. ``developer`` is OpenAI's newer name of ``system`` and is given to the chat template as that."""

    role: Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(ROLES)})]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: Any = None  # refused unless empty
    tool_call_id: Any = None  # refused unless empty
    function_call: Any = None  # refused unless empty
    refusal: Any = None  # ignored, with the two below: OpenAI's answers hold them and clients send them back
    annotations: Any = None
    audio: Any = None


class ChatCompletionRequest(SamplingFields, frozen=True, kw_only=True):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Refused unless they ask for what happens anyway.
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    modalities: list[str] | None = None
    parallel_tool_calls: Any = None  # ignored: there are no tools


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /tokenize``: either ``prompt`` or ``messages``."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /detokenize``."""

    tokens: TokenIds
    model: str | None = None
