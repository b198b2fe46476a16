"""What is compared: folders with a config.json and no weights, and what their steps must read and compute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from parhelion.bench.compare.device import Probe
from parhelion.errors import ConfigError

_OTHER_BYTES = 2
"""Of an element of the head, of keys and of values: bfloat16."""

FP8_PER_TOKEN_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "token",
                "symmetric": True,
                "dynamic": True,
            },
            "output_activations": None,
        }
    },
    "kv_cache_scheme": None,
    "ignore": ["lm_head"],
}
"""FP8 weights by channel and activations by token, as compressed-tensors writes it."""


@dataclass(frozen=True)
class Shape:
    """A dense Qwen3 model's dimensions, under the names of config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool


QWEN3_0_6B = Shape(1024, 3072, 28, 16, 8, 128, 151936, True)
QWEN3_1_7B = Shape(2048, 6144, 28, 16, 8, 128, 151936, True)
QWEN3_8B = Shape(4096, 12288, 36, 32, 8, 128, 151936, False)
TINY = Shape(256, 512, 3, 4, 2, 64, 1024, False)

SHAPES: Mapping[str, Shape] = {
    "tiny": TINY,
    "qwen3-0.6b": QWEN3_0_6B,
    "qwen3-1.7b": QWEN3_1_7B,
    "qwen3-8b": QWEN3_8B,
}
"""Models that are known by name; ``tiny`` is for trying the command on a CPU."""


@dataclass(frozen=True)
class ComparedModel:
    """A model folder that every engine is given.

    Attributes:
        name: in the results.
        folder: holds at least a config.json.
        load_format: ``dummy`` where the folder holds no weights, else ``auto``.
        shape: its dimensions.
        weight_bytes: of an element of the linear layers.
        dense: False for a mixture of experts, whose steps read what the router picks: no floor is stated.
    """

    name: str
    folder: Path
    load_format: str
    shape: Shape
    weight_bytes: int
    dense: bool

    def floor_bytes(self, batch: int, context: int) -> int | None:
        """What a decode step must read at least; None if it depends on the tokens."""
        return step_bytes(self.shape, batch, context, self.weight_bytes) if self.dense else None

    def prefill_floor_s(self, batch: int, length: int, probe: Probe) -> float | None:
        """Seconds that so many prompts need at least: their products at the device's measured rates, or the weights'
        bytes, whichever is longer; None if that depends on the tokens, or the device has no such products.
        """
        if not self.dense or not {self.weight_bytes, _OTHER_BYTES} <= probe.rates.keys():
            return None
        linear, other = prefill_flops(self.shape, batch, length)
        computing = linear / probe.rates[self.weight_bytes] + other / probe.rates[_OTHER_BYTES]
        return max(computing, step_bytes(self.shape, batch, length, self.weight_bytes) / probe.bandwidth)


def step_bytes(shape: Shape, batch: int, context: int, weight_bytes: int = 1) -> int:
    """What a decode step must read at least: linear weights, bfloat16 head, every sequence's bfloat16 keys and values.

    Args:
        batch, context: sequences, and tokens of each.
        weight_bytes: of an element of the linear layers; 1 is FP8.
    """
    head = 2 * shape.hidden_size * shape.vocab_size
    return linear_elements(shape) * weight_bytes + batch * context * kv_bytes_per_token(shape) + head


def prefill_flops(shape: Shape, batch: int, length: int) -> tuple[int, int]:
    """FLOPs of prompts: of the linear layers, and of causal attention and the head for the last token of each.

    Args:
        batch, length: prompts, and tokens of each.
    """
    layers, heads = shape.num_hidden_layers, shape.num_attention_heads * shape.head_dim
    attention = 2 * layers * heads * batch * length * (length + 1)
    return 2 * linear_elements(shape) * batch * length, attention + 2 * shape.hidden_size * shape.vocab_size * batch


def linear_elements(shape: Shape) -> int:
    """Elements of the linear layers' weights, the head excepted."""
    qkv = (shape.num_attention_heads + 2 * shape.num_key_value_heads) * shape.head_dim
    out = shape.num_attention_heads * shape.head_dim
    return shape.num_hidden_layers * shape.hidden_size * (qkv + out + 3 * shape.intermediate_size)


def kv_bytes_per_token(shape: Shape, element_bytes: int = 2) -> int:
    """Bytes of a token's keys and values in all layers."""
    return 2 * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim * element_bytes


def write_config(shape: Shape, folder: Path, quantization: dict[str, Any] | None) -> Path:
    """A folder with nothing but a config.json."""
    of_model = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "eos_token_id": 1, "bos_token_id": 0}
    quantized = {} if quantization is None else {"quantization_config": quantization}
    return _write_config({**of_model, **asdict(shape), **quantized}, folder)


def write_head_config(target: Shape, folder: Path) -> Path:
    """The config.json alone of an EAGLE-3 head like those that are published for Qwen3: a layer as wide as the target's
    own, unquantized, and a vocabulary of at most 32000 tokens.
    """
    head = {
        **asdict(target),
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "draft_vocab_size": min(target.vocab_size, 32000),
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
    }
    return _write_config(head, folder)


def _write_config(own: Mapping[str, Any], folder: Path) -> Path:
    common = {
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**common, **own}, indent=2))
    return folder


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A byte-level tokenizer of that many ids: servers then detokenize alike. Ids past the bytes are made-up words."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = [*sorted(ByteLevel.alphabet()), *(f"w{number}" for number in range(vocab_size))][:vocab_size]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "vocab": {word: number for number, word in enumerate(words)}, "merges": []}
    tokenizer = {"version": "1.0", "added_tokens": [], "pre_tokenizer": level, "decoder": level, "model": model}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def compared_model(model: str, folder: Path) -> ComparedModel:
    """A model by name, written below ``folder`` as FP8 without weights; or a folder of the caller's, as it stands.

    Raises:
        ConfigError: neither a known name nor a folder whose config.json states a decoder's dimensions.
    """
    if model in SHAPES:
        where = write_config(SHAPES[model], folder / model, FP8_PER_TOKEN_CONFIG)
        return read_model(model, where)
    where = Path(model)
    if not (where / "config.json").is_file():
        known = ", ".join(SHAPES)
        raise ConfigError(f"{model!r} is neither a model known here ({known}) nor a folder with a config.json")
    return read_model(where.resolve().name, where.resolve())


def read_model(name: str, folder: Path) -> ComparedModel:
    """What a folder's config.json says.

    Raises:
        ConfigError: it lacks a dimension.
    """
    config = json.loads((folder / "config.json").read_text())
    try:
        heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
        shape = Shape(
            hidden_size=hidden,
            intermediate_size=int(config["intermediate_size"]),
            num_hidden_layers=int(config["num_hidden_layers"]),
            num_attention_heads=heads,
            num_key_value_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocab_size=int(config["vocab_size"]),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as missing:
        raise ConfigError(f"{folder / 'config.json'} lacks {missing}, so memory and floors cannot be told") from None
    has_weights = any(folder.glob("*.safetensors"))
    experts = any(config.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts"))
    return ComparedModel(name, folder, "auto" if has_weights else "dummy", shape, _weight_bytes(config), not experts)


def _weight_bytes(config: Mapping[str, Any]) -> int:
    # Every quantization that this engine reads has 8-bit linear weights.
    if config.get("quantization_config"):
        return 1
    return 4 if (config.get("dtype") or config.get("torch_dtype")) == "float32" else 2
