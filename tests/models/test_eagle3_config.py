"""EAGLE-3 heads as they are published: both config.json, both sets of names, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from parhelion.errors import CheckpointError, ConfigError
from parhelion.layers.program import PLAIN
from parhelion.models.checkpoint import open_checkpoint, read_model_config
from parhelion.models.config import ModelConfig
from parhelion.models.decoder import BuildOptions
from parhelion.models.eagle3 import Eagle3Head
from parhelion.models.eagle3_config import check_fits, is_eagle3, read_eagle3_config
from parhelion.models.registry import model_class
from parhelion.models.weights import CheckpointWeights, DummyWeights
from parhelion.ops.resolve import Resolver
from parhelion.quantization import UNQUANTIZED
from tests.models.eagle3_heads import (
    HEAD,
    LAYER,
    LAYER_JSON,
    ORIGINAL_JSON,
    SPECULATORS_JSON,
    HeldWeights,
    head_tensors,
    new_cache,
    options,
    step_batch,
    write_head,
)

TARGET = replace(LAYER, architecture="Qwen3ForCausalLM", hidden_size=24, num_layers=12)


def without(config: dict[str, object], *names: str) -> dict[str, object]:
    return {name: value for name, value in config.items() if name not in names}


def with_layer(**changes: object) -> dict[str, object]:
    return {**SPECULATORS_JSON, "transformer_layer_config": {**LAYER_JSON, **changes}}


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    original = read_eagle3_config(write_head(tmp_path / "original", ORIGINAL_JSON))
    speculators = read_eagle3_config(write_head(tmp_path / "speculators", SPECULATORS_JSON))
    assert original == replace(HEAD, layer=original.layer)
    assert replace(original.layer, rope=LAYER.rope) == LAYER
    assert original.layer.rope.theta == LAYER.rope.theta
    assert speculators == replace(original, norm_before_residual=True, verifier="some/model")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ORIGINAL_JSON, True),
        (SPECULATORS_JSON, True),
        ({**ORIGINAL_JSON, "architectures": ["LlamaForCausalLM"]}, True),
        ({**ORIGINAL_JSON, "architectures": ["Eagle3DeepseekV2ForCausalLM"]}, True),
        ({**LAYER_JSON, "architectures": ["LlamaForCausalLM"]}, False),
        ({**SPECULATORS_JSON, "speculators_model_type": "dflash"}, False),
        (LAYER_JSON, False),
    ],
)
def test_heads_are_told_from_models(tmp_path: Path, config: dict[str, object], expected: bool) -> None:
    assert is_eagle3(write_head(tmp_path, config)) is expected


def test_what_has_no_config_is_no_head(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert not is_eagle3(tmp_path)
    assert not is_eagle3(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        read_eagle3_config(tmp_path)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (without(ORIGINAL_JSON, "target_hidden_size"), {"target_hidden_size": 32}),
        ({**SPECULATORS_JSON, "target_hidden_size": None}, {"target_hidden_size": 32}),
        (without(ORIGINAL_JSON, "draft_vocab_size"), {"draft_vocab_size": 48}),
        ({**ORIGINAL_JSON, "norm_before_residual": True}, {"norm_before_residual": True}),
        ({**SPECULATORS_JSON, "norm_before_residual": False}, {"norm_before_residual": False}),
        (
            {**SPECULATORS_JSON, "norm_before_fc": True, "norm_output": True, "fc_norm": False},
            {"norm_before_fc": True, "norm_output": True},
        ),
        ({**ORIGINAL_JSON, "eagle_config": {"norm_before_fc": True}}, {"norm_before_fc": True}),
        ({**SPECULATORS_JSON, "fc_norm": True}, {"fc_norm": True}),
        ({**SPECULATORS_JSON, "eagle_aux_hidden_state_layer_ids": [2, 18, 33]}, {"feature_layers": (2, 18, 33)}),
        (
            {**ORIGINAL_JSON, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [2, 9, 14, 20]}},
            {"feature_layers": (2, 9, 14, 20), "num_features": 4},
        ),
        # Numbers of the layers whose outputs are read, as their first one tells: Qwen3-235B has 94 layers.
        (
            {**ORIGINAL_JSON, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 46, 90]}},
            {"feature_layers": (2, 94 // 2, 94 - 3)},
        ),
        ({**SPECULATORS_JSON, "eagle_aux_hidden_state_layer_ids": None}, {"feature_layers": None, "num_features": 3}),
    ],
)
def test_a_field_has_its_meaning(tmp_path: Path, config: dict[str, object], changes: dict[str, Any]) -> None:
    read = read_eagle3_config(write_head(tmp_path, config))
    assert {name: getattr(read, name) for name in changes} == changes


def test_the_kind_of_layer_says_whether_heads_are_normalized_and_what_they_see(tmp_path: Path) -> None:
    qwen3 = read_eagle3_config(write_head(tmp_path / "qwen3", with_layer(model_type="qwen3"))).layer
    assert qwen3.qk_norm
    named_by_target = {**ORIGINAL_JSON, "architectures": ["Eagle3LlamaForCausalLM"], "model_type": "qwen3"}
    assert not read_eagle3_config(write_head(tmp_path / "llama", named_by_target)).layer.qk_norm
    slides = with_layer(use_sliding_window=True, sliding_window=7, layer_types=["sliding_attention"])
    assert read_eagle3_config(write_head(tmp_path / "slides", slides)).layer.sliding_windows == (7,)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**LAYER_JSON, "architectures": ["LlamaForCausalLM"]}, "is not of an EAGLE-3 draft head"),
        ({**SPECULATORS_JSON, "speculators_model_type": "eagle"}, "is not of an EAGLE-3 draft head"),
        ({**ORIGINAL_JSON, "architectures": ["Eagle3DeepseekV2ForCausalLM"]}, "Eagle3DeepseekV2ForCausalLM"),
        (with_layer(model_type="deepseek_v3"), "model_type 'deepseek_v3'; supported are llama, qwen3"),
        (without(SPECULATORS_JSON, "norm_before_residual"), "does not say norm_before_residual"),
        (without(SPECULATORS_JSON, "transformer_layer_config"), "missing required field"),
        ({**SPECULATORS_JSON, "quantization_config": {"quant_method": "compressed-tensors"}}, "head is quantized"),
        ({**ORIGINAL_JSON, "eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state is false"),
        ({**ORIGINAL_JSON, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({**ORIGINAL_JSON, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope scaling 'dynamic'"),
        ({**ORIGINAL_JSON, "draft_vocab_size": "many"}, "draft_vocab_size"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, config: dict[str, object], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read_eagle3_config(write_head(tmp_path, config))


@pytest.mark.parametrize(("json_config", "first"), [(ORIGINAL_JSON, "midlayer"), (SPECULATORS_JSON, "layers.0")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_folder_of_either_format_computes_what_its_tensors_do(
    tmp_path: Path, json_config: dict[str, object], first: str, dtype: torch.dtype
) -> None:
    config = read_eagle3_config(write_head(tmp_path, json_config))
    tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in head_tensors(config, first).items()}
    write_head(tmp_path, json_config, tensors)
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.config == config.layer
        read = Eagle3Head(config, CheckpointWeights(checkpoint), options())
    held = Eagle3Head(config, HeldWeights(tensors), options())
    batch = step_batch(LAYER, torch.arange(6), [0], [6])
    hidden = torch.randn(6, 3 * 24)
    normed = [head.forward(batch, head.features(hidden), new_cache(LAYER))[0] for head in (read, held)]
    assert torch.equal(*normed)
    assert torch.equal(*[head.compute_logits(normed[0]) for head in (read, held)])


@pytest.mark.parametrize(
    "missing",
    [
        "fc.weight",
        "midlayer.hidden_norm.weight",
        "midlayer.self_attn.k_proj.weight",
        "midlayer.mlp.down_proj.weight",
        "norm.weight",
        "lm_head.weight",
        "d2t",
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, missing: str) -> None:
    tensors = head_tensors(HEAD)
    del tensors[missing]
    write_head(tmp_path, ORIGINAL_JSON, tensors)
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=f"no tensor {missing}"):
        Eagle3Head(HEAD, CheckpointWeights(checkpoint), options(), torch.zeros(48, 32), torch.zeros(48, 32))


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    write_head(tmp_path, ORIGINAL_JSON, head_tensors(replace(HEAD, target_hidden_size=16)))
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"fc\.weight.* \(32, 48\)"):
        Eagle3Head(HEAD, CheckpointWeights(checkpoint), options())


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    write_head(tmp_path, ORIGINAL_JSON)
    (tmp_path / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match=r"pickles \(pytorch_model\.bin\).* convert them to safetensors"):
        open_checkpoint(tmp_path)


def test_a_head_is_no_model_of_its_own(tmp_path: Path) -> None:
    found = read_model_config(write_head(tmp_path, SPECULATORS_JSON))
    with pytest.raises(CheckpointError, match="Eagle3LlamaForCausalLM is not supported"):
        model_class(found.architecture)


def test_made_up_weights_do_for_trying_out_shapes() -> None:
    head = Eagle3Head(HEAD, DummyWeights(0, tied=False), options())
    batch = step_batch(LAYER, torch.arange(5), [0], [5])
    normed, _ = head.forward(batch, head.features(torch.randn(5, 3 * 24)), new_cache(LAYER))
    assert head.compute_logits(normed).shape == (5, 48)


@pytest.mark.parametrize(
    ("layers", "num_layers", "expected"),
    [(None, 36, (2, 18, 33)), (None, 7, (2, 3, 4)), ((0, 1, 3), 4, (0, 1, 3)), ((3,), 4, (3,))],
)
def test_a_head_of_the_targets_sizes_fits(
    layers: tuple[int, ...] | None, num_layers: int, expected: tuple[int, ...]
) -> None:
    config, target = replace(HEAD, feature_layers=layers), replace(TARGET, num_layers=num_layers)
    check_fits(config, target)
    assert config.layers_read(target) == expected


@pytest.mark.parametrize(
    ("changes", "target", "named"),
    [
        ({}, replace(TARGET, hidden_size=32), "reads hidden states of 24 elements, but the model's have 32"),
        ({}, replace(TARGET, vocab_size=50), "knows 48 tokens, but the model 50"),
        (
            {},
            replace(TARGET, num_layers=4),
            "before the layers 2, 2, 1 by default, but the model has the layers 0 to 3",
        ),
        ({"feature_layers": (2, 6, 12)}, TARGET, r"2, 6, 12 by its config\.json, but the model has the layers 0 to 11"),
        ({"feature_layers": (-1, 6, 9)}, TARGET, "-1, 6, 9"),
        ({"feature_layers": (6, 2, 9)}, TARGET, "ascending order"),
        ({"verifier": "some/model"}, replace(TARGET, vocab_size=50), "which was made for some/model, knows"),
    ],
)
def test_a_head_of_other_sizes_is_refused(changes: dict[str, Any], target: ModelConfig, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        check_fits(replace(HEAD, **changes), target)


# Heads as they are published for Qwen3-32B (speculators) and Llama 3.1 8B (the original format): the dimensions in
# config.json and the tensors of the file.
QWEN3_32B = {
    "architectures": ["Eagle3Speculator"],
    "speculators_model_type": "eagle3",
    "draft_vocab_size": 32000,
    "norm_before_residual": True,
    "target_hidden_size": None,
    "speculators_config": {"algorithm": "eagle3", "verifier": {"name_or_path": "Qwen/Qwen3-32B"}},
    "transformer_layer_config": {
        "model_type": "llama",
        "hidden_size": 5120,
        "intermediate_size": 25600,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_hidden_layers": 1,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "vocab_size": 151936,
        "attention_bias": False,
    },
}
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    "draft_vocab_size": 32000,
    "rope_scaling": None,
    "max_position_embeddings": 2048,
}
Shapes = dict[str, tuple[int, ...]]
QWEN3_32B_SHAPES: Shapes = {
    "embed_tokens.weight": (151936, 5120),
    "fc.weight": (5120, 15360),
    "layers.0.hidden_norm.weight": (5120,),
    "layers.0.input_layernorm.weight": (5120,),
    "layers.0.post_attention_layernorm.weight": (5120,),
    "layers.0.self_attn.q_proj.weight": (8192, 10240),
    "layers.0.self_attn.k_proj.weight": (1024, 10240),
    "layers.0.self_attn.v_proj.weight": (1024, 10240),
    "layers.0.self_attn.o_proj.weight": (5120, 8192),
    "layers.0.mlp.gate_proj.weight": (25600, 5120),
    "layers.0.mlp.up_proj.weight": (25600, 5120),
    "layers.0.mlp.down_proj.weight": (5120, 25600),
    "norm.weight": (5120,),
    "lm_head.weight": (32000, 5120),
    "d2t": (32000,),
    "t2d": (151936,),
}
LLAMA_8B_SHAPES: Shapes = {
    "fc.weight": (4096, 12288),
    "midlayer.hidden_norm.weight": (4096,),
    "midlayer.input_layernorm.weight": (4096,),
    "midlayer.post_attention_layernorm.weight": (4096,),
    "midlayer.self_attn.q_proj.weight": (4096, 8192),
    "midlayer.self_attn.k_proj.weight": (1024, 8192),
    "midlayer.self_attn.v_proj.weight": (1024, 8192),
    "midlayer.self_attn.o_proj.weight": (4096, 4096),
    "midlayer.mlp.gate_proj.weight": (14336, 4096),
    "midlayer.mlp.up_proj.weight": (14336, 4096),
    "midlayer.mlp.down_proj.weight": (4096, 14336),
    "norm.weight": (4096,),
    "lm_head.weight": (32000, 4096),
    "d2t": (32000,),
    "t2d": (128256,),
}


def write_header(path: Path, shapes: Shapes) -> None:
    """A safetensors file of these shapes whose data are a hole."""
    header, end = {}, 0
    for name, shape in shapes.items():
        dtype, size = {"d2t": ("I64", 8), "t2d": ("BOOL", 1)}.get(name, ("BF16", 2))
        start, end = end, end + size * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)


class HeaderWeights:
    """Tensors without data, of the shapes that a file's header says; d2t is zero."""

    num_bytes = 0

    def __init__(self, path: Path) -> None:
        with safe_open(str(path), framework="pt") as file:
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        self.read: Shapes = {}

    def get(self, name: str, *shape: int) -> torch.Tensor:
        self.read[name] = shape
        return torch.zeros(shape, dtype=torch.int64) if name == "d2t" else torch.empty(shape, device="meta")

    def has(self, name: str) -> bool:
        return name in self.shapes


@pytest.mark.parametrize(("config", "shapes"), [(QWEN3_32B, QWEN3_32B_SHAPES), (LLAMA_8B, LLAMA_8B_SHAPES)])
def test_published_heads_are_read_whole_and_in_their_shapes(
    tmp_path: Path, config: dict[str, object], shapes: Shapes
) -> None:
    write_header(write_head(tmp_path, config) / "model.safetensors", shapes)
    with open_checkpoint(tmp_path) as checkpoint:
        assert set(checkpoint.names()) == set(shapes)
    head = read_eagle3_config(tmp_path)
    weights = HeaderWeights(tmp_path / "model.safetensors")
    table = torch.empty(head.layer.vocab_size, head.layer.hidden_size, device="meta")
    on_meta = BuildOptions(
        torch.bfloat16, torch.bfloat16, UNQUANTIZED, (PLAIN,), Resolver(torch.device("meta")), 16, 2048
    )
    Eagle3Head(head, weights, on_meta, None if weights.has("embed_tokens.weight") else table)
    # Which tokens the head knows follows from d2t as well.
    assert weights.read == {name: shape for name, shape in shapes.items() if name != "t2d"}
