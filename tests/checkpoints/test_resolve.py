"""What a user may call a model."""

from __future__ import annotations

from pathlib import Path

import httpx
import huggingface_hub
import pytest

from parhelion.errors import ModelNotFoundError
from parhelion.models.catalog import HUB_IDS, find_entry
from parhelion.models.resolve import resolve_model
from parhelion.tuning.model_shapes import MODEL_SHAPES


def test_an_alias_is_the_pulled_file(smollm2_path: Path):
    assert smollm2_path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert smollm2_path.is_file()


def test_folders_and_gguf_files_are_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "model.gguf").touch()
    monkeypatch.chdir(tmp_path)
    assert resolve_model(str(tmp_path)) == tmp_path
    assert resolve_model("model.gguf") == Path("model.gguf")
    assert resolve_model("org/name") == Path("org/name")


@pytest.mark.parametrize(
    "name", ["nothing", "", "a/b/c", "./nowhere", "nowhere.gguf", "/no/where", "~no-such-user/x", "x" * 5000, "nul\0"]
)
def test_an_unknown_name_lists_the_aliases_and_the_forms(name: str):
    with pytest.raises(ModelNotFoundError, match=r"an alias \(smollm2-135m\), a folder .* a \.gguf file, or a hub id"):
        resolve_model(name)


def test_another_kind_of_file_is_refused(tmp_path: Path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(ModelNotFoundError, match=r"is a file but no \.gguf file"):
        resolve_model(str(tmp_path / "model.bin"))


def test_a_hub_id_is_fetched_without_pickles_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[str, list[str]]] = []

    def fetch(repo_id: str, *, allow_patterns: list[str], etag_timeout: float) -> str:
        asked.append((repo_id, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve_model("org/name") == tmp_path
    assert asked[0][0] == "org/name"
    assert not any(pattern.endswith((".bin", ".py", ".pt", "*")) for pattern in asked[0][1])


def test_the_tuners_models_are_short_for_those_of_the_hub_unless_a_folder_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[str] = []

    def fetch(repo_id: str, *, allow_patterns: list[str], etag_timeout: float) -> str:
        asked.append(repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    named = [shape.name for shape in MODEL_SHAPES if find_entry(shape.name) is None]
    assert all(resolve_model(name) == tmp_path for name in named)
    assert asked == [HUB_IDS[name] for name in named]
    (tmp_path / "qwen3-8b").mkdir()
    assert resolve_model("qwen3-8b") == Path("qwen3-8b")


def test_a_hub_out_of_reach_is_said_clearly(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> str:
        raise httpx.ConnectError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match="model hub cannot be reached: check the network"):
        resolve_model("org/name")
