"""What a client sends as a prompt, as token ids that fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

from parhelion.errors import InvalidRequestError
from parhelion.server.engine_client import TokenizerClient
from parhelion.server.protocol import ROLES, ChatMessage, PromptInput
from parhelion.server.threads import beside_the_loop


class ChatPromptFields(Protocol):
    """The fields of a body that turn messages into a prompt."""

    @property
    def add_generation_prompt(self) -> bool | None:
        """Whether to end with the opening of the assistant's turn; by default, unless the last turn is continued."""

    @property
    def continue_final_message(self) -> bool | None:
        """Whether the model goes on writing the last message."""

    @property
    def chat_template_kwargs(self) -> dict[str, Any] | None:
        """Further variables of the template."""


def split_prompts(prompt: PromptInput) -> list[str] | list[list[int]]:
    """One entry a prompt, either all texts or all token ids.

    Raises:
        InvalidRequestError: there is none, one is empty, or kinds are mixed.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("prompt is an empty list; give a text or token ids", "prompt")
    texts = [item for item in prompt if isinstance(item, str)]
    token_ids = [item for item in prompt if isinstance(item, int)]
    lists = [item for item in prompt if isinstance(item, list)]
    if len(texts) == len(prompt):
        return texts
    if len(token_ids) == len(prompt):
        return [token_ids]
    if len(lists) == len(prompt):
        return lists
    raise InvalidRequestError(
        "prompt mixes kinds; give one text, a list of texts, a list of token ids, or a list of such lists", "prompt"
    )


async def encode(
    tokenizer: TokenizerClient, prompts: Sequence[str | list[int]], *, add_special_tokens: bool
) -> list[list[int]]:
    """Token ids of each prompt; those that are ids already stay as they are."""

    def encode_all() -> list[list[int]]:
        return [one if isinstance(one, list) else tokenizer.encode(one, add_special_tokens) for one in prompts]

    return await beside_the_loop(sum(len(one) for one in prompts if isinstance(one, str)), encode_all)


async def render_chat(tokenizer: TokenizerClient, messages: Sequence[ChatMessage], fields: ChatPromptFields) -> str:
    """The conversation through the model's chat template.

    Raises:
        InvalidRequestError: the model has no template, a message is of an unsupported kind, or the template refuses.
    """
    if not tokenizer.has_chat_template:
        raise InvalidRequestError(
            "This model has no chat template: write the prompt yourself and use /v1/completions", "messages"
        )
    if not messages:
        raise InvalidRequestError("messages is empty; give at least one", "messages")
    plain = [_plain_message(index, message) for index, message in enumerate(messages)]
    size = sum(len(message["content"]) for message in plain)
    return await beside_the_loop(size, partial(_apply_template, tokenizer, plain, fields))


def _apply_template(tokenizer: TokenizerClient, messages: Sequence[dict[str, str]], fields: ChatPromptFields) -> str:
    continued = bool(fields.continue_final_message)
    opened = fields.add_generation_prompt if fields.add_generation_prompt is not None else not continued
    if opened and continued:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt exclude each other; set one of them to false",
            "continue_final_message",
        )
    try:
        return tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=opened,
            continue_final_message=continued,
            template_kwargs=fields.chat_template_kwargs,
        )
    except InvalidRequestError:
        raise
    except Exception as error:  # a template is a program of the model's author, run on the client's values
        raise InvalidRequestError(
            f"The model's chat template refuses these messages: {error}", "messages", "chat_template_error"
        ) from error


def _plain_message(index: int, message: ChatMessage) -> dict[str, str]:
    where = f"messages[{index}]"
    if message.role not in ROLES:
        raise InvalidRequestError(
            f"{where}.role is {message.role[:100]!r}; a role is one of {', '.join(ROLES)}", f"{where}.role"
        )
    if message.role in ("tool", "function"):
        raise InvalidRequestError(
            f"{where}.role is {message.role!r}; tool calls are not supported yet, so that there are no results to give",
            f"{where}.role",
        )
    for name in ("tool_calls", "tool_call_id", "function_call"):
        if getattr(message, name):
            raise InvalidRequestError(
                f"{where}.{name}: tool calls are not supported yet; leave it out", f"{where}.{name}"
            )
    plain = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _text_of(message, f"{where}.content"),
    }
    return plain if message.name is None else {**plain, "name": message.name}


def _text_of(message: ChatMessage, where: str) -> str:
    if message.content is None:
        raise InvalidRequestError(f"{where} is missing; give a text or text parts", where)
    if isinstance(message.content, str):
        return message.content
    texts = []
    for index, part in enumerate(message.content):
        if part.type not in ("text", "input_text"):
            raise InvalidRequestError(
                f"{where}[{index}] is of type {part.type[:100]!r}; this model reads only text parts",
                f"{where}[{index}].type",
                "unsupported_content",
            )
        if part.text is None:
            raise InvalidRequestError(f"{where}[{index}].text is required", f"{where}[{index}].text")
        texts.append(part.text)
    return "\n".join(texts)


def check_prompt(token_ids: Sequence[int], vocab_size: int, max_model_len: int, param: str) -> None:
    """Whether the prompt is one that the model can read, with room for at least one token.

    Raises:
        InvalidRequestError: it is empty, too long, or holds an id outside the vocabulary.
    """
    if not token_ids:
        raise InvalidRequestError(f"{param} is empty: it holds no token", param)
    if len(token_ids) >= max_model_len:
        raise InvalidRequestError(
            f"{param} has {len(token_ids)} tokens; this model reads and writes {max_model_len} together and needs room "
            "for one more at least: shorten it",
            param,
            "context_length_exceeded",
        )
    check_token_ids(token_ids, vocab_size, param)


def check_token_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    """Raises InvalidRequestError if an id lies outside ``0..vocab_size - 1``."""
    for token_id in (min(token_ids, default=0), max(token_ids, default=0)):
        if not 0 <= token_id < vocab_size:
            raise InvalidRequestError(
                f"{param} holds the token id {short_number(token_id)}; this model's ids run from 0 to {vocab_size - 1}",
                param,
            )


def short_number(value: int) -> str:
    """A client's number for an error message; JSON's have no limit."""
    return str(value) if abs(value) < 1 << 64 else "of more than 64 bits"


def room_for_output(num_prompt_tokens: int, max_tokens: int | None, param: str, max_model_len: int) -> int:
    """Tokens that may be generated: those asked for in the field ``param``, or all that fit.

    Raises:
        InvalidRequestError: more are asked for than fit beside the prompt.
    """
    room = max_model_len - num_prompt_tokens
    if max_tokens is None:
        return room
    if max_tokens > room:
        raise InvalidRequestError(
            f"{param} is {short_number(max_tokens)}, and the prompt has {num_prompt_tokens} tokens; this model reads "
            f"and writes {max_model_len} together: ask for at most {room} or shorten the prompt",
            param,
            "context_length_exceeded",
        )
    return max_tokens
