"""Text to token ids and back, in one form for every file format. For several threads at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from parhelion.errors import CheckpointError, InvalidRequestError
from parhelion.models.chat_template import ChatTemplate, Message
from parhelion.models.token_bytes import token_bytes_of


class Tokenizer:
    """A fast tokenizer with its special tokens and its chat template.

    Attributes:
        vocab_size: ids are below this; added tokens included.
        eos_token_ids: ids that end a text or a turn.
        bos_token_id: id that starts a text, or None.
        special_ids: ids that are left out of a text with ``skip_special_tokens``.
        drops_first_space: decoding leaves out a space at the very start, which encoding put there.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        eos_token_ids: tuple[int, ...] = (),
        bos_token_id: int | None = None,
        chat_template: ChatTemplate | None = None,
    ) -> None:
        """Wrap a tokenizer of the ``tokenizers`` library, which no one may change afterwards.

        Raises:
            CheckpointError: its vocabulary is neither byte-level nor SentencePiece.
        """
        self._backend = backend
        self._token_bytes = token_bytes_of(backend)
        self._chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size = max(backend.get_vocab_size(with_added_tokens=True), max(added, default=-1) + 1)
        self.eos_token_ids = eos_token_ids
        self.bos_token_id = bos_token_id
        self.drops_first_space = self._token_bytes.drops_first_space

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._chat_template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
            text: special tokens in it, such as ``<|im_start|>``, become their ids.
            add_special_tokens: put those around it that the model expects (a text from a chat template has them).

        Raises:
            InvalidRequestError: the text holds half of a surrogate pair, which is no character.
        """
        try:
            # Of a batch, for a single text the library computes without letting other threads run.
            (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return list(encoding.ids)
        except (TypeError, UnicodeEncodeError):
            raise InvalidRequestError(
                "the text holds a lone surrogate (U+D800..U+DFFF), which is no character: send valid Unicode", "prompt"
            ) from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD, unknown ids nothing.

        Raises:
            InvalidRequestError: an id is negative or 2**32 or more.
        """
        try:
            (text,) = self._backend.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)
            return str(text)
        except OverflowError:
            raise InvalidRequestError(f"token ids must lie in 0..{self.vocab_size - 1}", "tokens") from None

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text; empty for unknown ids."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return b""
        return self._token_bytes.to_bytes(token)

    def token_text(self, token_id: int) -> str:
        """One token as text, special tokens by name; parts of characters become U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """A conversation as text, to be encoded without further special tokens.

        Args:
            messages: the conversation, oldest first.
            tools: functions the model may call, as JSON schemas in OpenAI's form.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: leave the last message open instead, so that the model goes on with it.
            template_kwargs: what else the template reads, such as ``enable_thinking``.

        Raises:
            InvalidRequestError: the model has no template, or the messages do not fit it.
        """
        if self._chat_template is None:
            raise InvalidRequestError(
                "this model has no chat template: send a plain prompt to /v1/completions, or serve an instruct model",
                "messages",
            )
        return self._chat_template.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a ``.gguf`` file or a Hugging Face style folder.

    Raises:
        CheckpointError: none there, damaged, or of a kind that is not supported.
    """
    # The two formats build on this module, so they are imported when one is loaded.
    if path.is_dir():
        from parhelion.models.hf_tokenizer import load_hf_tokenizer

        return load_hf_tokenizer(path)
    if not path.exists():
        raise CheckpointError(f"there is no tokenizer at {path}: give a folder or a .gguf file with --tokenizer")
    from parhelion.models.gguf_tokenizer import load_gguf_tokenizer

    return load_gguf_tokenizer(path)
