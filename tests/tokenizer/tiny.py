"""Tiny tokenizers, written by the tests that read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import gguf
from hypothesis import strategies as st

from parhelion.models.token_bytes import byte_level_characters
from tests.checkpoints.tiny import finish, gguf_writer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6


def byte_tokens() -> list[str]:
    """The 256 characters of a byte-level vocabulary, in the order of their bytes."""
    return sorted(byte_level_characters(), key=byte_level_characters().__getitem__)


def text_within_planes(max_size: int | None = None) -> st.SearchStrategy[str]:
    """Texts without control characters and unassigned planes, for some of whose bytes SmolLM2 has no tokens."""
    return st.text(st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"]), max_size=max_size)


def write_byte_level(
    path: Path,
    *,
    pre: str | None = "gpt-2",
    merges: Sequence[str] = (),
    control: Sequence[str] = ("<|end|>",),
    user_defined: Sequence[str] = (),
    add_bos: bool | None = None,
    add_eos: bool | None = None,
    template: str | None = None,
) -> Path:
    """A GGUF of a byte-level tokenizer: control tokens from id 0, then user-defined ones, bytes and merged pieces."""
    writer = gguf_writer(path)
    tokens = [*control, *user_defined, *byte_tokens(), *(merge.replace(" ", "") for merge in merges)]
    kinds = [CONTROL] * len(control) + [USER_DEFINED] * len(user_defined)
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds + [NORMAL] * (len(tokens) - len(kinds)))
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    _add_optional(writer, add_bos, add_eos, template)
    finish(writer)
    return path


def write_sentence_piece(path: Path, pieces: Sequence[tuple[str, float]]) -> Path:
    """A GGUF of a SentencePiece tokenizer: <unk>, <s>, </s>, 256 bytes, then the pieces with their scores."""
    writer = gguf_writer(path)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece, _ in pieces)]
    scores = [0.0] * 259 + [score for _, score in pieces]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types([UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces))
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    finish(writer)
    return path


def write_hf_folder(folder: Path, template: str | None = None) -> Path:
    """A folder with a byte-level tokenizer.json and its config."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: token_id for token_id, token in enumerate([*byte_tokens(), "he", "llo", "ll", "hello"])}
    merges = [("h", "e"), ("l", "l"), ("ll", "o"), ("he", "llo")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken("<|end|>", special=True), AddedToken("<think>", special=False)])
    tokenizer.enable_truncation(4)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    (folder / "generation_config.json").write_text('{"eos_token_id": [260, 5]}')
    return folder


def _add_optional(writer: gguf.GGUFWriter, add_bos: bool | None, add_eos: bool | None, template: str | None) -> None:
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    if add_eos is not None:
        writer.add_add_eos_token(add_eos)
    if template is not None:
        writer.add_chat_template(template)
