"""Rendering a conversation as the text that a model was trained on, by the template its authors ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from parhelion.errors import InvalidRequestError

Message = Mapping[str, Any]
"""A chat message as OpenAI's API has it: ``role``, ``content``, and what else the template reads."""

_RESERVED = frozenset(
    {
        "conversations",
        "messages",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "return_assistant_tokens_mask",
    }
)
_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class ChatTemplate:
    """A model's Jinja template; it runs in Jinja's immutable sandbox.

    Attributes:
        template: the source.
        tool_template: used instead when there are tools; None where one template serves both.
        special_tokens: the token texts that a template may name, such as ``bos_token``.
    """

    template: str
    tool_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: Mapping[str, Any] | None,
    ) -> str:
        """The conversation as text.

        Raises:
            InvalidRequestError: the messages do not fit the template, or template_kwargs names what it may not.
        """
        if not messages:
            raise InvalidRequestError("messages is empty; it must hold at least one message", "messages")
        if add_generation_prompt and continue_final_message:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other; set one of them to false",
                "continue_final_message",
            )
        _check_names(template_kwargs)
        # See import_renderer.
        from jinja2 import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        source = self.tool_template if tools and self.tool_template is not None else self.template
        try:
            rendered, _ = render_jinja_template(
                conversations=[[dict(message) for message in messages]],
                tools=[dict(tool) for tool in tools] if tools else None,
                chat_template=source,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **{**self.special_tokens, **(template_kwargs or {})},
            )
        # Whatever a template does with messages of the wrong shape, the request is at fault: TypeError for adding None
        # to a string, KeyError, AttributeError, RecursionError, and Jinja's own.
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
            raise InvalidRequestError(
                f"the model's chat template cannot render these messages ({reason}): check roles and contents",
                "messages",
            ) from error
        return str(rendered[0])


def import_renderer() -> None:
    """Import what renders a template: it takes a second, and completions never need it, so that this module does not.

    Where many are served at once it is done beforehand.
    """
    import_module("jinja2")
    import_module("transformers.utils.chat_template_utils")


def _check_names(template_kwargs: Mapping[str, Any] | None) -> None:
    for name in template_kwargs or {}:
        if name in _RESERVED:
            raise InvalidRequestError(
                f"chat_template_kwargs may not set {name!r}; the request has its own field for that",
                "chat_template_kwargs",
            )
