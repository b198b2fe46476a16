"""The tokenizer of a Hugging Face style folder."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Backend

from parhelion.errors import CheckpointError
from parhelion.models.chat_template import ChatTemplate
from parhelion.models.hf_config import hf_eos_token_ids
from parhelion.models.tokenizer import Tokenizer

_REASON_CHARACTERS = 300


def load_hf_tokenizer(folder: Path) -> Tokenizer:
    """Load it with transformers, without running code from the folder.

    Raises:
        CheckpointError: no tokenizer there, a damaged one, or one that exists only as code.
    """
    # Imported here: transformers takes seconds, and GGUF files do without it.
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    # The library wraps what goes wrong in many types; all mean that this folder's tokenizer is unusable.
    except Exception as error:
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        raise CheckpointError(
            f"cannot load a tokenizer from {folder} ({reason}): fetch tokenizer.json and tokenizer_config.json, or "
            "give another folder with --tokenizer"
        ) from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise CheckpointError(
            f"the tokenizer in {folder} has no fast form (tokenizer.json): give another folder with --tokenizer"
        )
    backend.no_truncation()
    backend.no_padding()
    eos = [loaded.eos_token_id] if loaded.eos_token_id is not None else []
    return Tokenizer(
        backend,
        eos_token_ids=tuple(dict.fromkeys([*eos, *hf_eos_token_ids(folder)])),
        bos_token_id=loaded.bos_token_id,
        chat_template=_chat_template(loaded.chat_template, loaded.special_tokens_map),
    )


def _chat_template(source: str | dict[str, str] | None, special_tokens: dict[str, object]) -> ChatTemplate | None:
    """The template, or the pair for chats without and with tools where a folder has several."""
    named = {name: token for name, token in special_tokens.items() if isinstance(token, str)}
    if isinstance(source, str):
        return ChatTemplate(source, special_tokens=named)
    if source and "default" in source:
        return ChatTemplate(source["default"], source.get("tool_use"), special_tokens=named)
    return None
