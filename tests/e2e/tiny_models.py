"""Tiny random checkpoints, written by transformers, one for every way in which an architecture may differ, and their
tokenizer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    import transformers

COMMON: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    # Large enough for attention to be far from uniform, so that a wrong rotation or mask changes the output.
    "initializer_range": 0.2,
}


@dataclass(frozen=True)
class TinyModel:
    """Attributes:
    overrides: of COMMON, in the architecture's configuration.
    shard_size: largest safetensors file, None for one file.
    """

    name: str
    architecture: str
    overrides: dict[str, Any] = field(default_factory=dict)
    shard_size: str | None = None

    def write(self, folder: Path) -> transformers.PreTrainedModel:
        """Save the checkpoint and return the model that transformers computes, in float32."""
        # It takes seconds to import, and processes that tests start import this module too.
        import transformers

        config_class = getattr(transformers, f"{self.architecture}Config")
        config = config_class(**{**COMMON, **self.overrides})
        torch.manual_seed(len(self.name))
        model = getattr(transformers, f"{self.architecture}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.2)
                elif "norm" in name:
                    parameter.uniform_(0.5, 1.5)
        model.save_pretrained(folder, **({} if self.shard_size is None else {"max_shard_size": self.shard_size}))
        return model


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

TINY_MODELS = (
    TinyModel("llama-gqa-untied", "Llama"),
    TinyModel("llama-gqa-tied", "Llama", {"tie_word_embeddings": True}),
    TinyModel("llama-mha-sharded", "Llama", {"num_key_value_heads": 4}, shard_size="100KB"),
    TinyModel("llama-biased-wide-heads", "Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    TinyModel(
        "llama-rope-linear", "Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}
    ),
    TinyModel("llama-rope-llama3", "Llama", {"rope_parameters": LLAMA3_ROPE}),
    TinyModel("mistral-sliding-window", "Mistral", {"sliding_window": 24}),
    TinyModel("qwen2-gqa-untied", "Qwen2"),
    TinyModel("qwen2-mha-tied-sharded", "Qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": True}, "100KB"),
    TinyModel(
        "qwen2-sliding-window", "Qwen2", {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1}
    ),
    TinyModel("qwen3-gqa-untied", "Qwen3", {"head_dim": 16}),
    TinyModel("qwen3-mha-tied", "Qwen3", {"num_key_value_heads": 4, "tie_word_embeddings": True, "head_dim": 32}),
)


def write_byte_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges and with two special tokens, beside a tiny checkpoint."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<|begin|>": 0, "<|end|>": 1, **{symbol: index + 2 for index, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
