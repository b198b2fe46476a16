"""Which class computes which architecture."""

from __future__ import annotations

from parhelion.errors import CheckpointError
from parhelion.models.decoder import DecoderModel
from parhelion.models.llama import LlamaForCausalLM
from parhelion.models.qwen2 import Qwen2ForCausalLM
from parhelion.models.qwen3 import Qwen3ForCausalLM

ARCHITECTURES: dict[str, type[DecoderModel]] = {
    "LlamaForCausalLM": LlamaForCausalLM,
    "MistralForCausalLM": LlamaForCausalLM,
    "Qwen2ForCausalLM": Qwen2ForCausalLM,
    "Qwen3ForCausalLM": Qwen3ForCausalLM,
}


def model_class(architecture: str) -> type[DecoderModel]:
    """The class of an architecture.

    Raises:
        CheckpointError: there is none.
    """
    try:
        return ARCHITECTURES[architecture]
    except KeyError:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(f"the architecture {architecture} is not supported; these are: {known}") from None
