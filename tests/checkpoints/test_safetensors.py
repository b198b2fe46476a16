"""Safetensors folders: what is in them comes out, and what is wrong with them is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from parhelion.errors import CheckpointError
from parhelion.models.checkpoint import open_checkpoint
from tests.checkpoints.tiny import write_config, write_sharded, write_single


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_every_tensor_comes_out_as_it_was_saved(tmp_path: Path, write):
    saved = write(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        assert sorted(checkpoint.names()) == sorted(saved)
        assert checkpoint.source_path == tmp_path
        assert checkpoint.total_bytes >= sum(tensor.nbytes for tensor in saved.values())
        read = {name: checkpoint.tensor(name) for name in checkpoint.names()}
    for name, tensor in saved.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_an_absent_tensor_is_named(tmp_path: Path):
    write_single(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert not checkpoint.has("lm_head.weight")
    with pytest.raises(CheckpointError, match=r"no tensor lm_head\.weight"):
        checkpoint.tensor("lm_head.weight")


def test_reading_after_close_is_an_error(tmp_path: Path):
    write_single(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        pass
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.tensor("model.norm.weight")


def test_a_missing_shard_is_named(tmp_path: Path):
    write_sharded(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks the shard model-00002-of-00003"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path):
    write_sharded(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"lacks tensor lm_head\.weight"):
        open_checkpoint(tmp_path)


def test_a_shard_outside_the_folder_is_refused(tmp_path: Path):
    write_sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}')
    with pytest.raises(CheckpointError, match="outside the folder"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": 3}'])
def test_a_bad_index_is_named(tmp_path: Path, text: str):
    write_config(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int):
    write_single(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=re.escape(str(file)) + " is truncated or damaged"):
        open_checkpoint(tmp_path)


def test_pickles_are_never_read(tmp_path: Path):
    write_config(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*convert them to safetensors"):
        open_checkpoint(tmp_path)


def test_a_gguf_file_in_the_folder_is_pointed_to(tmp_path: Path):
    write_config(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"give the path .*model\.gguf"):
        open_checkpoint(tmp_path)


def test_a_folder_without_weights_or_config_says_so(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        open_checkpoint(tmp_path)
    write_config(tmp_path)
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="no file or folder"):
        open_checkpoint(tmp_path / "nowhere")
