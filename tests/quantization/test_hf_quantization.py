"""quantization_config: the three formats people use are read, and any other is named."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.errors import CheckpointError
from parhelion.quantization import QuantScheme
from parhelion.quantization.hf_quantization import read_quantization_config

PATH = Path("folder/config.json")

FP8_DYNAMIC: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "input_activations": {
                "actorder": None,
                "block_structure": None,
                "dynamic": True,
                "group_size": None,
                "num_bits": 8,
                "observer": None,
                "observer_kwargs": {},
                "strategy": "token",
                "symmetric": True,
                "type": "float",
            },
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": None,
                "num_bits": 8,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "channel",
                "symmetric": True,
                "type": "float",
            },
        }
    },
    "format": "float-quantized",
    "global_compression_ratio": None,
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
QWEN_FP8: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}


def changed(config: dict[str, Any], change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    change(config)
    return config


def group_of(config: dict[str, Any]) -> dict[str, Any]:
    return config["config_groups"]["group_0"]


def int8(config: dict[str, Any]) -> None:
    config["format"] = "int-quantized"
    for kind in ("weights", "input_activations"):
        group_of(config)[kind]["type"] = "int"


def read(config: dict[str, Any]) -> QuantScheme:
    return read_quantization_config(PATH, config)


def test_compressed_fp8_is_per_channel_and_per_token():
    scheme = read(FP8_DYNAMIC)
    assert (scheme.weight_dtype, scheme.activation, scheme.block) == (torch.float8_e4m3fn, "fp8_per_token", None)
    assert (scheme.source, scheme.scale_name, scheme.scale_per_tensor) == ("checkpoint", "weight_scale", False)
    assert scheme.ignored == ("lm_head",)
    assert scheme.applies_to("model.layers.0.self_attn.q_proj")


def test_compressed_int8_is_per_channel_and_per_token():
    scheme = read(changed(FP8_DYNAMIC, int8))
    assert (scheme.weight_dtype, scheme.activation, scheme.block) == (torch.int8, "int8_per_token", None)


@pytest.mark.parametrize("strategy", ["tensor", None])
def test_one_scale_a_tensor_is_read_as_such(strategy: str | None):
    scheme = read(changed(FP8_DYNAMIC, lambda c: group_of(c)["weights"].update(strategy=strategy)))
    assert scheme.scale_per_tensor


def test_equal_groups_are_one_scheme():
    scheme = read(changed(FP8_DYNAMIC, lambda c: c["config_groups"].update(group_1=group_of(c))))
    assert scheme == read(FP8_DYNAMIC)


def test_block_fp8_has_its_own_activations_and_scale_names():
    scheme = read(QWEN_FP8)
    assert (scheme.weight_dtype, scheme.activation, scheme.block) == (torch.float8_e4m3fn, "fp8_per_group", 128)
    assert scheme.scale_name == "weight_scale_inv"
    assert not scheme.applies_to("lm_head")


@pytest.mark.parametrize("key", ["modules_to_not_convert", "ignored_layers"])
def test_block_fp8_leaves_out_modules_with_all_below_them(key: str):
    entries = ["model.layers.1", "mlp.gate", r"model\.layers\.[45]\.self_attn"]
    scheme = read({**QWEN_FP8, key: entries})
    ignored = ["model.layers.1.mlp.up_proj", "model.layers.7.mlp.gate", "model.layers.5.self_attn.q_proj", "lm_head"]
    covered = ["model.layers.11.mlp.up_proj", "model.layers.7.mlp.gate_proj", "model.layers.6.self_attn.q_proj"]
    assert not any(scheme.applies_to(name) for name in ignored)
    assert all(scheme.applies_to(name) for name in covered)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: group_of(c)["weights"].update(num_bits=4), "4-bit float"),
        (lambda c: group_of(c)["weights"].update(strategy="group", group_size=128), "per group"),
        (lambda c: group_of(c)["weights"].update(strategy="block", block_structure=[128, 128]), "per block"),
        (lambda c: group_of(c)["weights"].update(symmetric=False), "asymmetric"),
        (lambda c: group_of(c)["weights"].update(type="int"), "8-bit int"),
        (lambda c: group_of(c)["input_activations"].update(dynamic=False, strategy="tensor"), "per tensor, static"),
        (lambda c: group_of(c)["input_activations"].update(strategy="tensor"), r"per tensor, dynamic\) activations"),
        (lambda c: group_of(c)["input_activations"].update(dynamic="local"), "activations"),
        (lambda c: group_of(c).update(input_activations=None), "unquantized activations"),
        (lambda c: group_of(c).update(output_activations={"num_bits": 8}), "quantized outputs"),
        (lambda c: group_of(c).update(targets=["re:.*mlp.*"]), r"for re:\.\*mlp"),
        (lambda c: c.update(config_groups={}), "without config_groups"),
        (lambda c: c.update(format="pack-quantized"), "format pack-quantized"),
        (lambda c: c.update(sparsity_config={"format": "sparse-24-bitmask"}), "sparse-24-bitmask"),
        (
            lambda c: c["config_groups"].update(group_1=group_of(changed(FP8_DYNAMIC, int8))),
            "quantized differently",
        ),
    ],
)
def test_other_compressed_tensors_are_named_beside_what_is_supported(change, named: str):
    with pytest.raises(CheckpointError, match=named) as raised:
        read(changed(FP8_DYNAMIC, change))
    assert str(raised.value).startswith(str(PATH))
    assert "supported are compressed-tensors with 8-bit float or int weights" in str(raised.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**QWEN_FP8, "weight_block_size": [64, 128]}, r"\[64, 128\]"),
        ({**QWEN_FP8, "weight_block_size": None}, "fp8 with a scale a tensor"),
        ({**QWEN_FP8, "activation_scheme": "static"}, "static activations"),
        ({**QWEN_FP8, "fmt": "e5m2"}, "e5m2"),
        ({**QWEN_FP8, "scale_fmt": "ue8m0"}, "ue8m0 scales"),
        ({"quant_method": "awq", "bits": 4}, "quantized as awq"),
        ({"bits": 4}, "quantized as no quant_method"),
    ],
)
def test_other_methods_are_named_beside_what_is_supported(config: dict[str, Any], named: str):
    with pytest.raises(CheckpointError, match=named) as raised:
        read(config)
    assert "supported are" in str(raised.value)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**QWEN_FP8, "weight_block_size": "128"}, "weight_block_size"),
        ({**FP8_DYNAMIC, "ignore": "lm_head"}, "ignore"),
        ({**FP8_DYNAMIC, "ignore": ["re:("]}, r"'re:\('"),
        ({**QWEN_FP8, "modules_to_not_convert": ["("]}, "no pattern"),
    ],
)
def test_a_description_that_makes_no_sense_is_an_error(config: dict[str, Any], named: str):
    with pytest.raises(CheckpointError, match=named):
        read(config)
