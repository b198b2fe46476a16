"""Tokenizers from Hugging Face style folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parhelion.errors import CheckpointError
from parhelion.models.tokenizer import load_tokenizer
from tests.tokenizer.tiny import write_hf_folder


def test_a_folder_loads_with_its_special_tokens_and_without_truncation(tmp_path: Path):
    tokenizer = load_tokenizer(write_hf_folder(tmp_path))
    assert tokenizer.encode("hello") == [259]
    assert len(tokenizer.encode("abcdefghij")) == 10
    assert tokenizer.encode("<|end|><think>") == [260, 261]
    assert tokenizer.decode([259, 260, 261]) == "hello<think>"
    assert tokenizer.special_ids == {260}
    assert tokenizer.eos_token_ids == (260, 5)
    assert tokenizer.vocab_size == 262
    assert not tokenizer.has_chat_template


def test_the_folders_template_is_used(tmp_path: Path):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer = load_tokenizer(write_hf_folder(tmp_path, template))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) == "[user]hi<|end|>"


def test_the_template_for_tools_is_used_where_there_are_tools(tmp_path: Path):
    folder = write_hf_folder(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools[0].name }}"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(folder)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages) == "plain"
    assert tokenizer.apply_chat_template(messages, tools=[{"name": "look"}]) == "look"


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_a_missing_or_damaged_tokenizer_names_the_way_out(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot load a tokenizer from .*--tokenizer"):
        load_tokenizer(tmp_path)


def test_code_in_a_folder_is_never_run(tmp_path: Path):
    folder = write_hf_folder(tmp_path)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", null]}}'
    )
    (folder / "mine.py").write_text("import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n")
    with pytest.raises(CheckpointError, match="cannot load a tokenizer"):
        load_tokenizer(folder)
    assert not (folder / "ran").exists()
