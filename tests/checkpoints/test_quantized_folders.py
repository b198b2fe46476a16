"""Quantized safetensors folders: what was quantized comes back, within the format's rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, FineGrainedFP8Config

from parhelion.errors import CheckpointError
from parhelion.models.checkpoint import open_checkpoint, read_model_config
from parhelion.models.weights import CheckpointWeights
from parhelion.quantization import UNQUANTIZED, LinearWeights, QuantScheme, dequantize, load_linear
from tests.checkpoints.quantized import FORMATS, PROJECTIONS, float_weights, write_quantized, write_quantized_config

CPU = torch.device("cpu")
QKV = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
DOWN = "model.layers.0.mlp.down_proj"


def load(folder: Path, *names: str, device: torch.device | None = None) -> LinearWeights:
    with open_checkpoint(folder, device) as checkpoint:
        scheme = checkpoint.config.quantization or UNQUANTIZED
        shapes = [PROJECTIONS[name] for name in names]
        rows = tuple(shape[0] for shape in shapes)
        weights = CheckpointWeights(checkpoint)
        return load_linear(weights, scheme, names, rows, shapes[0][1], False, torch.bfloat16, CPU)


def rounding(source: torch.Tensor, name: str) -> torch.Tensor:
    """By how much a format may change each element.

    Three mantissa bits are half a step of 2**-4; int8 has half a 127th of the channel's largest. bfloat16 scales come
    in twice, since codes were made with them: they add nothing but the codes that the clamp at 448 cuts, by 2**-8.
    """
    if name == "int8":
        return source.abs().amax(1, keepdim=True) / 254 * 1.001
    return source.abs() * (2**-4 + 2**-8) + source.abs().max() / 448 / 1024


@pytest.mark.parametrize("device", [None, CPU])
@pytest.mark.parametrize("name", FORMATS)
def test_weights_come_back_within_the_formats_rounding(tmp_path: Path, name: str, device: torch.device | None):
    weights = write_quantized(tmp_path, name)
    for names in (QKV, (DOWN,)):
        source = torch.cat([weights[f"{n}.weight"] for n in names])
        linear = load(tmp_path, *names, device=device)
        assert linear.weight.dtype == (torch.int8 if name == "int8" else torch.float8_e4m3fn)
        assert ((dequantize(linear) - source).abs() <= rounding(source, name)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_the_configuration_carries_the_scheme(tmp_path: Path, name: str):
    scheme = read_model_config(write_quantized_config(tmp_path, name)).quantization
    assert isinstance(scheme, QuantScheme)
    assert scheme.source == "checkpoint"
    assert all(scheme.applies_to(module) for module in PROJECTIONS)
    assert not scheme.applies_to("lm_head")


@pytest.mark.parametrize(
    ("name", "key", "entry"),
    [
        ("fp8-dynamic", "ignore", DOWN),
        ("int8", "ignore", "re:.*down_proj$"),
        ("fp8-block", "modules_to_not_convert", DOWN),
        ("fp8-block", "modules_to_not_convert", "mlp.down_proj"),
    ],
)
def test_ignored_layers_are_read_as_plain_weights(tmp_path: Path, name: str, key: str, entry: str):
    config = {**FORMATS[name].quantization_config, key: ["lm_head", entry]}
    weights = write_quantized(tmp_path, name, plain=(DOWN,), quantization_config=config)
    down = load(tmp_path, DOWN)
    assert down.scheme is UNQUANTIZED
    assert torch.equal(down.weight.float(), weights[f"{DOWN}.weight"])
    assert load(tmp_path, *QKV).scheme.is_quantized


def test_embeddings_and_the_head_are_plain(tmp_path: Path):
    weights = write_quantized(tmp_path, "fp8-dynamic")
    with open_checkpoint(tmp_path) as checkpoint:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(checkpoint.tensor(name).float(), weights[name])


def test_a_quantized_head_is_refused_unless_it_is_the_embedding(tmp_path: Path):
    config = {**FORMATS["fp8-dynamic"].quantization_config, "ignore": []}
    with pytest.raises(CheckpointError, match="lm_head is quantized as well"):
        read_model_config(write_quantized_config(tmp_path, "fp8-dynamic", quantization_config=config))
    tied = write_quantized_config(tmp_path, "fp8-dynamic", quantization_config=config, tie_word_embeddings=True)
    assert read_model_config(tied).quantization is not None


def test_an_unsupported_scheme_names_the_file_and_the_scheme(tmp_path: Path):
    write_quantized_config(tmp_path, "int8", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"config\.json: the weights are quantized as gptq; supported are"):
        open_checkpoint(tmp_path)


def test_block_fp8_is_what_transformers_makes_of_it(tmp_path: Path):
    config = {**FORMATS["fp8-block"].quantization_config, "modules_to_not_convert": ["mlp.down_proj"]}
    write_quantized(tmp_path, "fp8-block", plain=(DOWN,), quantization_config=config)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        quantization_config=FineGrainedFP8Config(dequantize=True, modules_to_not_convert=["mlp.down_proj"]),
    ).state_dict()
    for name in PROJECTIONS:
        assert torch.equal(dequantize(load(tmp_path, name)), theirs[f"{name}.weight"].float())


def test_a_scale_of_the_wrong_shape_is_named(tmp_path: Path):
    write_quantized(tmp_path, "fp8-tensor", quantization_config=FORMATS["fp8-dynamic"].quantization_config)
    with pytest.raises(CheckpointError, match=r"down_proj\.weight_scale in .* has shape \(1,\)"):
        load(tmp_path, DOWN)


def test_plain_folders_have_no_scheme(tmp_path: Path):
    config = write_quantized_config(tmp_path, "int8", quantization_config=None)
    assert read_model_config(config).quantization is None
    assert len(float_weights()) == 12
