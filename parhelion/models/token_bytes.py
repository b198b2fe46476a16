"""The bytes of the text that a single token stands for.

A token need not be whole characters: a byte-level vocabulary splits an emoji into up to four tokens. Bytes can always
be joined; text cannot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from parhelion.errors import CheckpointError

_SPACE_MARK = "▁"
_WORD_PIECE_DECODERS = ("Metaspace", "ByteFallback")


def byte_level_characters() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford et al., 2019, GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    characters.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return characters


@dataclass(frozen=True)
class ByteLevelTokens:
    """Tokens of a byte-level vocabulary: each character is a byte."""

    characters: dict[str, int]
    drops_first_space: bool = False

    def to_bytes(self, token: str) -> bytes:
        """Bytes of a vocabulary entry; an added token that is no byte-level text stands for itself."""
        try:
            return bytes([self.characters[character] for character in token])
        except KeyError:
            return token.encode()


@dataclass(frozen=True)
class SentencePieceTokens:
    """Tokens of a SentencePiece vocabulary: a mark for the space, and ``<0x0A>`` for bytes that are in no piece."""

    drops_first_space: bool

    def to_bytes(self, token: str) -> bytes:
        """Bytes of a vocabulary entry."""
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            try:
                return bytes([int(token[3:5], 16)])
            except ValueError:
                return token.encode()
        return token.replace(_SPACE_MARK, " ").encode()


TokenBytes = ByteLevelTokens | SentencePieceTokens


def token_bytes_of(backend: Backend) -> TokenBytes:
    """How this tokenizer writes bytes in its vocabulary, by its decoder.

    Raises:
        CheckpointError: neither byte-level nor SentencePiece.
    """
    decoders = _decoders(backend)
    kinds = [decoder["type"] for decoder in decoders]
    if "ByteLevel" in kinds:
        return ByteLevelTokens(byte_level_characters())
    if any(kind in _WORD_PIECE_DECODERS for kind in kinds):
        strips = any(decoder["type"] == "Strip" and decoder.get("start", 0) > 0 for decoder in decoders)
        prepends = any(decoder.get("prepend_scheme", "never") != "never" for decoder in decoders)
        return SentencePieceTokens(drops_first_space=strips or prepends)
    raise CheckpointError(
        f"the tokenizer's decoder is {'+'.join(kinds) or 'none'}; supported are byte-level and SentencePiece ones: "
        "give another folder with --tokenizer"
    )


def _decoders(backend: Backend) -> list[dict[str, Any]]:
    """The decoder's steps, as the library describes them."""
    if backend.decoder is None:
        return []
    described = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = described.get("decoders", [described])
    return steps
