"""A tokenizer for a model that has none: every id is written as itself, such as ``<123>``.

It serves models with made-up weights, whose text means nothing anyway.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from parhelion.errors import InvalidRequestError
from parhelion.models.chat_template import ChatTemplate
from parhelion.models.tokenizer import Tokenizer

_ID = re.compile(r"<(\d{1,10})>")
_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
# What says that a folder holds a tokenizer.
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


class IdsTokenizer(Tokenizer):
    """Ids as text, and text as ids: ``<5><7>`` is 5 and 7, and any other text a token for each of its UTF-8 bytes."""

    def __init__(
        self, vocab_size: int, *, eos_token_ids: tuple[int, ...] = (), bos_token_id: int | None = None
    ) -> None:
        """For ids below ``vocab_size``."""
        self.vocab_size = vocab_size
        self.eos_token_ids = eos_token_ids
        self.bos_token_id = bos_token_id
        self.special_ids = frozenset()
        self.drops_first_space = False
        self._chat_template = ChatTemplate(_TEMPLATE)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; no special tokens are ever added.

        Raises:
            InvalidRequestError: the text holds half of a surrogate pair, which is no character.
        """
        ids: list[int] = []
        position = 0
        for match in _ID.finditer(text):
            if int(match[1]) < self.vocab_size:
                ids += self._bytes_as_ids(text[position : match.start()])
                ids.append(int(match[1]))
                position = match.end()
        return ids + self._bytes_as_ids(text[position:])

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The ids in angle brackets; ids of the vocabulary only."""
        return "".join(map(self.token_text, ids))

    def token_bytes(self, token_id: int) -> bytes:
        """Such as ``<123>``; empty for unknown ids."""
        return b"<%d>" % token_id if 0 <= token_id < self.vocab_size else b""

    def _bytes_as_ids(self, text: str) -> list[int]:
        try:
            return [byte % self.vocab_size for byte in text.encode()]
        except UnicodeEncodeError:
            raise InvalidRequestError(
                "the text holds a lone surrogate (U+D800..U+DFFF), which is no character: send valid Unicode", "prompt"
            ) from None


def load_tokenizer_or_ids(path: Path) -> Tokenizer:
    """The tokenizer at a path; an ``IdsTokenizer`` for a folder with a config.json and no tokenizer.

    Raises:
        CheckpointError: a tokenizer is there but cannot be used, or nothing is there.
    """
    from parhelion.models.hf_config import hf_eos_token_ids, hf_vocab_size
    from parhelion.models.tokenizer import load_tokenizer

    if not path.is_dir() or any((path / name).exists() for name in _FILES):
        return load_tokenizer(path)
    return IdsTokenizer(hf_vocab_size(path), eos_token_ids=hf_eos_token_ids(path))
