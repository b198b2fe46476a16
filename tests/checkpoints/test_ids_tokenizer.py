"""Ids as text, for folders without a tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parhelion.engine.detokenizer import IncrementalDetokenizer
from parhelion.errors import CheckpointError, InvalidRequestError
from parhelion.models.ids_tokenizer import IdsTokenizer, load_tokenizer_or_ids
from parhelion.types import SamplingParams
from tests.checkpoints.tiny import VOCAB, write_config


def test_ids_are_written_and_read_as_themselves():
    tokenizer = IdsTokenizer(1000)
    assert tokenizer.decode([5, 123, 0]) == "<5><123><0>"
    assert tokenizer.encode("<5><123><0>") == [5, 123, 0]
    assert (tokenizer.token_bytes(7), tokenizer.token_text(7)) == (b"<7>", "<7>")
    assert tokenizer.decode([-1, 1000]) == ""


def test_other_text_is_its_bytes_and_keeps_its_place():
    tokenizer = IdsTokenizer(1000)
    assert tokenizer.encode("a<5>é<1000>") == [97, 5, *"é<1000>".encode()]
    assert IdsTokenizer(10).encode("a") == [97 % 10]
    assert tokenizer.encode("") == []


def test_a_lone_surrogate_is_refused():
    with pytest.raises(InvalidRequestError, match="lone surrogate"):
        IdsTokenizer(1000).encode("\ud800")


def test_conversations_become_text():
    text = IdsTokenizer(1000).apply_chat_template([{"role": "user", "content": "<1><2>"}])
    assert text == "user: <1><2>\nassistant: "
    assert IdsTokenizer(1000).has_chat_template


def test_text_streams_id_by_id():
    detokenizer = IncrementalDetokenizer(IdsTokenizer(100), [1], SamplingParams())
    detokenizer.append((4,), False)
    detokenizer.append((5, 6), True)
    assert detokenizer.text == "<4><5><6>"


def test_a_folder_without_a_tokenizer_gets_one_of_its_ids(tmp_path: Path):
    tokenizer = load_tokenizer_or_ids(write_config(tmp_path, {"eos_token_id": 2}))
    assert isinstance(tokenizer, IdsTokenizer)
    assert (tokenizer.vocab_size, tokenizer.eos_token_ids) == (VOCAB, (2,))


def test_a_tokenizer_that_is_there_is_used_or_reported(tmp_path: Path):
    write_config(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load a tokenizer"):
        load_tokenizer_or_ids(tmp_path)
    with pytest.raises(CheckpointError, match="there is no tokenizer"):
        load_tokenizer_or_ids(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_tokenizer_or_ids(tmp_path / "empty")


def test_it_needs_no_torch(tmp_path: Path):
    write_config(tmp_path, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}})
    script = (
        "import sys, pathlib; from parhelion.models.ids_tokenizer import load_tokenizer_or_ids as load; "
        f"load(pathlib.Path({str(tmp_path)!r})).decode([1]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
