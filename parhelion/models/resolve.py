"""From what a user calls a model to where its files lie."""

from __future__ import annotations

import re
from pathlib import Path

from parhelion.errors import ModelNotFoundError
from parhelion.models.catalog import HUB_IDS, aliases, find_entry
from parhelion.models.pull import Progress, pull

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Weights and tokenizers as data only: pickles (*.bin, *.pt) and code (*.py) are never fetched.
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "tokenizer.model"]
_HUB_TIMEOUT_S = 10.0
_REASON_CHARACTERS = 300


def resolve_model(name: str, *, progress: Progress | None = None) -> Path:
    """The folder or ``.gguf`` file of a model, pulled or downloaded where it must be.

    An alias comes first, then a path, then a hub id or what is short for one; ``./name`` names a folder that is called
    like an alias.

    Args:
        name: an alias, a Hugging Face style folder, a ``.gguf`` file, a hub id ``org/name`` or a name of ``HUB_IDS``.
        progress: told the bytes done and the bytes in all while an alias is pulled.

    Raises:
        ModelNotFoundError: nothing answers to the name, or it cannot be fetched.
    """
    entry = find_entry(name)
    if entry is not None:
        return pull(entry, progress=progress)
    path = _existing_path(name)
    if path is not None:
        return _checked_path(path)
    if name.endswith(".gguf") or name.startswith(("/", ".", "~")):
        raise ModelNotFoundError(f"there is no file or folder {name}; {_forms()}")
    hub_id = HUB_IDS.get(name, name)
    if _HUB_ID.fullmatch(hub_id):
        return _hub_snapshot(hub_id)
    raise ModelNotFoundError(f"no model is called {name!r}; {_forms()}")


def _existing_path(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if name and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, of an unknown user, or with a null character
        return None


def _forms() -> str:
    return (
        f"a model is an alias ({', '.join(aliases())}), a folder with config.json and *.safetensors, a .gguf file, "
        f"or a hub id such as org/name, for some of which {', '.join(HUB_IDS)} are short"
    )


def _checked_path(path: Path) -> Path:
    if path.is_dir() or path.suffix == ".gguf":
        return path
    raise ModelNotFoundError(f"{path} is a file but no .gguf file; {_forms()}")


def _hub_snapshot(repo_id: str) -> Path:
    # Imported here because most starts never need it and it is slow to import.
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        folder = snapshot_download(repo_id, allow_patterns=_HUB_PATTERNS, etag_timeout=_HUB_TIMEOUT_S)
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"the hub gives {repo_id} only to those who accepted its terms: accept them on its page, "
            "then log in with 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"the hub has no model {repo_id} that you may see: check the name, or log in with 'hf auth login'; "
            f"{_forms()}"
        ) from error
    except (OSError, ValueError, httpx.HTTPError) as error:
        reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
        raise ModelNotFoundError(
            f"{repo_id} is no local folder, and the model hub cannot be reached: check the network, or copy the "
            f"model's folder here and give its path; {_forms()}. The reason: {reason}"
        ) from error
    return Path(folder)
