"""``lm_head_quantization``: only the output head becomes codes, whatever the checkpoint and wherever its table is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from parhelion.config import EngineConfig, Quantization
from parhelion.engine.load import load_model
from parhelion.engine.score import prompt_logits, prompt_states
from parhelion.errors import CheckpointError, ConfigError
from parhelion.models.decoder import DecoderModel
from tests.checkpoints.quantized import FORMATS, write_quantized
from tests.e2e.tiny_models import TinyModel

PROMPT = list(range(3, 40))
TIED = TinyModel("qwen3-tied-head", "Qwen3", {"tie_word_embeddings": True, "num_hidden_layers": 2})
UNTIED = TinyModel("llama-untied-head", "Llama", {"num_hidden_layers": 2})
LOST = {"fp8": 0.06, "int8": 0.02}
"""Of the logits' norm at most: codes of three bits behind the first, or steps of 1/127 of the largest."""


def load(folder: Path, **options: object) -> DecoderModel:
    config = EngineConfig(model=str(folder), dtype="float32", device="cpu", threads=1, **options)  # type: ignore[arg-type]
    return load_model(config, folder).model


def check_only_the_head_changed(folder: Path, head: Quantization, **options: object) -> None:
    plain, quantized = load(folder, **options), load(folder, lm_head_quantization=head, **options)
    assert (plain.head_scheme.name, quantized.head_scheme.name) == ("unquantized", f"{head}_per_token")
    assert quantized.scheme == plain.scheme
    # The embedding and all layers are what they were.
    states = prompt_states(plain, PROMPT, 16)
    assert torch.equal(prompt_states(quantized, PROMPT, 16), states)
    before, after = (prompt_logits(model, PROMPT, 16) for model in (plain, quantized))
    assert 0 < (after - before).norm() / before.norm() < LOST[head]


@pytest.mark.parametrize("head", ["fp8", "int8"])
@pytest.mark.parametrize("model", [TIED, UNTIED], ids=lambda model: model.name)
def test_of_a_table_of_its_own_and_of_one_that_embeds_too(model: TinyModel, head: Quantization, tmp_path: Path) -> None:
    model.write(tmp_path)
    check_only_the_head_changed(tmp_path, head)
    check_only_the_head_changed(tmp_path, head, quantization="int8")
    check_only_the_head_changed(tmp_path, head, load_format="dummy")


@pytest.mark.parametrize("name", FORMATS)
def test_of_quantized_checkpoints(name: str, tmp_path: Path) -> None:
    write_quantized(tmp_path, name)
    check_only_the_head_changed(tmp_path, "fp8")
    check_only_the_head_changed(tmp_path, "int8", load_format="dummy")


def test_it_is_off_unless_asked_for(tmp_path: Path) -> None:
    UNTIED.write(tmp_path)
    assert not load(tmp_path, quantization="fp8").head_scheme.is_quantized


def test_a_head_that_is_not_finite_is_named(tmp_path: Path) -> None:
    UNTIED.write(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"][7, 3] = torch.inf
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight holds values that are not finite.* without quantiz"):
        load(tmp_path, lm_head_quantization="fp8")


def test_what_is_no_type_of_codes_is_refused() -> None:
    with pytest.raises(ConfigError, match="lm_head_quantization is 'fp4'; it must be fp8 or int8, or left out"):
        EngineConfig(model="tiny", lm_head_quantization="fp4")  # type: ignore[arg-type]
