"""config.json: each spelling means the same model, and what is unsupported is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from parhelion.errors import CheckpointError
from parhelion.models.config import RopeConfig
from parhelion.models.hf_config import read_hf_config
from tests.checkpoints.tiny import write_config


def test_what_is_left_out_takes_the_usual_value(tmp_path: Path):
    config = read_hf_config(write_config(tmp_path, drop=("num_key_value_heads",)))
    assert config.num_kv_heads == config.num_heads == 4
    assert config.head_dim == 8
    assert config.rope.theta == 10000.0
    assert config.rope.scaling is None
    assert not config.attention_bias
    assert not config.mlp_bias
    assert not config.tie_word_embeddings
    assert config.eos_token_ids == ()


LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": 5e5, "rope_scaling": None}, RopeConfig(theta=5e5, original_max_position=2048)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, RopeConfig(theta=5e5)),
        ({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2}}, RopeConfig(scaling="linear", factor=2)),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}},
            RopeConfig(scaling="linear", factor=2.0),
        ),
        (
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
            RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_position=512),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
            RopeConfig(theta=5e5, scaling="llama3", factor=8.0, original_max_position=512),
        ),
    ],
)
def test_rope_is_read_in_both_spellings(tmp_path: Path, changes: dict[str, object], expected: RopeConfig):
    rope = read_hf_config(write_config(tmp_path, changes)).rope
    assert (rope.theta, rope.scaling, rope.factor) == (expected.theta, expected.scaling, expected.factor)
    if expected.scaling == "llama3":
        assert rope == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"architectures": None, "model_type": "mamba"}, "mamba"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_scaling": {"type": "linear"}}, "no factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "kind of layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, changes: dict[str, object], named: str):
    with pytest.raises(CheckpointError, match=named):
        read_hf_config(write_config(tmp_path, changes))


def test_bad_json_names_the_file(tmp_path: Path):
    write_config(tmp_path)
    (tmp_path / "config.json").write_text('{"vocab_size": ')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be used"):
        read_hf_config(tmp_path)


def test_ends_come_from_both_files_without_doubles(tmp_path: Path):
    write_config(tmp_path, {"eos_token_id": 2, "bos_token_id": 1})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    config = read_hf_config(tmp_path)
    assert config.eos_token_ids == (2, 7)
    assert config.bos_token_id == 1


def test_biases_and_norms_follow_the_architecture(tmp_path: Path):
    biased = {"attention_bias": True, "mlp_bias": True}
    llama = read_hf_config(write_config(tmp_path, biased))
    assert (llama.attention_bias, llama.attention_output_bias, llama.mlp_bias, llama.qk_norm) == (True,) * 3 + (False,)
    qwen2 = read_hf_config(write_config(tmp_path, {"architectures": ["Qwen2ForCausalLM"]}))
    assert (qwen2.attention_bias, qwen2.attention_output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = read_hf_config(write_config(tmp_path, {"architectures": ["Qwen3ForCausalLM"], "head_dim": 16}))
    assert (qwen3.attention_bias, qwen3.attention_output_bias, qwen3.qk_norm, qwen3.head_dim) == (
        False,
        False,
        True,
        16,
    )


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}, ()),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, (None, 8)),
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2}, ()),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            (8, None),
        ),
    ],
)
def test_qwen_windows_are_per_layer(tmp_path: Path, changes: dict[str, object], windows: tuple[int | None, ...]):
    config = read_hf_config(write_config(tmp_path, {"architectures": ["Qwen2ForCausalLM"], **changes}))
    assert config.sliding_windows == windows


def test_mistral_is_a_llama_with_a_window_everywhere(tmp_path: Path):
    config = read_hf_config(write_config(tmp_path, {"architectures": ["MistralForCausalLM"], "sliding_window": 16}))
    assert config.architecture == "LlamaForCausalLM"
    assert config.sliding_windows == (16, 16)


@pytest.mark.parametrize("kind", [LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config])
def test_a_config_that_transformers_saves_reads_as_transformers_means_it(tmp_path: Path, kind):
    architecture = kind.__name__.replace("Config", "ForCausalLM")
    theirs = kind(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=3,
        intermediate_size=64,
        vocab_size=99,
        architectures=[architecture],
        tie_word_embeddings=True,
    )
    theirs.save_pretrained(tmp_path)
    ours = read_hf_config(tmp_path)
    assert ours.vocab_size == 99
    assert (ours.num_heads, ours.num_kv_heads, ours.num_layers) == (4, 2, 3)
    assert ours.head_dim == (getattr(theirs, "head_dim", None) or 8)
    assert ours.rms_norm_eps == theirs.rms_norm_eps
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.max_position == theirs.max_position_embeddings
    assert ours.tie_word_embeddings
