"""Which class computes which architecture."""

from __future__ import annotations

import pytest

from parhelion.errors import CheckpointError
from parhelion.models.decoder import DecoderModel
from parhelion.models.llama import LlamaForCausalLM
from parhelion.models.qwen2 import Qwen2ForCausalLM
from parhelion.models.qwen3 import Qwen3ForCausalLM
from parhelion.models.registry import ARCHITECTURES, model_class


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        ("LlamaForCausalLM", LlamaForCausalLM),
        ("MistralForCausalLM", LlamaForCausalLM),
        ("Qwen2ForCausalLM", Qwen2ForCausalLM),
        ("Qwen3ForCausalLM", Qwen3ForCausalLM),
    ],
)
def test_a_known_architecture_has_its_class(architecture: str, expected: type[DecoderModel]) -> None:
    assert model_class(architecture) is expected


def test_an_unknown_architecture_is_named_beside_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="MambaForCausalLM is not supported") as raised:
        model_class("MambaForCausalLM")
    for known in ARCHITECTURES:
        assert known in str(raised.value)
