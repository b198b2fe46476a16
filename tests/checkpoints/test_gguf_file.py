"""GGUF files: every type the gguf package decodes, Llama's row order, names, and damage."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from parhelion.errors import CheckpointError
from parhelion.models import gguf_file
from parhelion.models.checkpoint import open_checkpoint
from parhelion.models.gguf_file import unpermuted_rows
from parhelion.models.gguf_header import read_gguf_header
from tests.checkpoints.tiny import HEADS, HIDDEN, KV_HEADS, VOCAB, finish, gguf_writer, random_array

QUANTIZED_TYPES = sorted(kind.name for kind in gguf.quants._type_traits)


def interleaved(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """What a converter does to Llama's Q and K: row i of a head's first half, then row i of its second half."""
    half = rows.shape[0] // num_heads // 2
    order = [head * 2 * half + i + part * half for head in range(num_heads) for i in range(half) for part in (0, 1)]
    return rows[order]


def add_embedding(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("token_embd.weight", random_array(VOCAB, HIDDEN))


@pytest.mark.parametrize("kind", QUANTIZED_TYPES)
def test_every_type_decodes_as_the_gguf_package_does(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    quantization = GGMLQuantizationType[kind]
    block_size, block_bytes = GGML_QUANT_SIZES[quantization]
    raw = np.random.default_rng(1).integers(0, 256, (5, 2 * block_bytes), np.uint8)
    writer = gguf_writer(tmp_path / "model.gguf")
    add_embedding(writer)
    writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=quantization)
    finish(writer)
    monkeypatch.setattr(gguf_file, "_CHUNK_ELEMENTS", 4 * block_size)  # two rows at a time, and one left over
    with np.errstate(all="ignore"):  # random bytes hold infinite scales
        tensor = open_checkpoint(tmp_path / "model.gguf").tensor("model.layers.0.mlp.up_proj.weight")
        expected = gguf.dequantize(raw, quantization)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (5, 2 * block_size)
    np.testing.assert_array_equal(tensor.numpy(), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_plain_floats_come_out_exactly(tmp_path: Path, dtype: type):
    values = random_array(VOCAB, HIDDEN).astype(dtype)
    writer = gguf_writer(tmp_path / "model.gguf")
    writer.add_tensor("token_embd.weight", values)
    finish(writer)
    tensor = open_checkpoint(tmp_path / "model.gguf").tensor("model.embed_tokens.weight")
    np.testing.assert_array_equal(tensor.numpy(), values.astype(np.float32))


@pytest.mark.parametrize("shape", [(HIDDEN, HIDDEN), (HIDDEN,)])
def test_permuted_rows_return_to_their_order(shape: tuple[int, ...]):
    rows = random_array(*shape)
    restored = unpermuted_rows(torch.from_numpy(interleaved(rows, HEADS)), HEADS)
    np.testing.assert_array_equal(restored.numpy(), rows)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_q_and_k_are_reordered_for_llama_alone(tmp_path: Path, architecture: str):
    q, k, v = random_array(HIDDEN, HIDDEN), random_array(HIDDEN // 2, HIDDEN), random_array(HIDDEN // 2, HIDDEN)
    bias = random_array(HIDDEN)
    stored = (lambda rows, heads: interleaved(rows, heads)) if architecture == "llama" else (lambda rows, heads: rows)
    writer = gguf_writer(tmp_path / "model.gguf", architecture)
    add_embedding(writer)
    writer.add_tensor("blk.0.attn_q.weight", stored(q, HEADS))
    writer.add_tensor("blk.0.attn_q.bias", stored(bias, HEADS))
    writer.add_tensor("blk.0.attn_k.weight", stored(k, KV_HEADS))
    writer.add_tensor("blk.0.attn_v.weight", v)
    finish(writer)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert checkpoint.config.attention_bias
    attention = "model.layers.0.self_attn"
    np.testing.assert_array_equal(checkpoint.tensor(f"{attention}.q_proj.weight").numpy(), q)
    np.testing.assert_array_equal(checkpoint.tensor(f"{attention}.q_proj.bias").numpy(), bias)
    np.testing.assert_array_equal(checkpoint.tensor(f"{attention}.k_proj.weight").numpy(), k)
    np.testing.assert_array_equal(checkpoint.tensor(f"{attention}.v_proj.weight").numpy(), v)


def test_names_and_switches_are_those_of_hugging_face(tmp_path: Path):
    writer = gguf_writer(tmp_path / "model.gguf", "qwen3")
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_eos_token_id(7)
    writer.add_eot_token_id(9)
    add_embedding(writer)
    for name in ("output_norm", "blk.1.attn_norm", "blk.1.ffn_norm", "blk.0.attn_q_norm", "blk.0.attn_k_norm"):
        writer.add_tensor(f"{name}.weight", random_array(16))
    writer.add_tensor("output.weight", random_array(VOCAB, HIDDEN))
    finish(writer)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert set(checkpoint.names()) == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.k_norm.weight",
    }
    config = checkpoint.config
    assert config.architecture == "Qwen3ForCausalLM"
    assert config.qk_norm
    assert not config.tie_word_embeddings
    assert config.head_dim == 16
    assert config.vocab_size == VOCAB
    assert config.eos_token_ids == (7, 9)
    assert (config.rope.theta, config.max_position) == (50000.0, 128)
    with pytest.raises(CheckpointError, match=r"no tensor model\.layers\.5"):
        checkpoint.tensor("model.layers.5.input_layernorm.weight")


def test_rope_scaling_is_read(tmp_path: Path):
    writer = gguf_writer(tmp_path / "linear.gguf")
    add_embedding(writer)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)
    finish(writer)
    rope = open_checkpoint(tmp_path / "linear.gguf").config.rope
    assert (rope.scaling, rope.factor, rope.freq_factors) == ("linear", 4.0, None)

    writer = gguf_writer(tmp_path / "llama3.gguf")
    add_embedding(writer)
    writer.add_tensor("rope_freqs.weight", np.array([1, 1, 4, 8], np.float32))
    finish(writer)
    checkpoint = open_checkpoint(tmp_path / "llama3.gguf")
    assert checkpoint.config.rope.freq_factors == (1.0, 1.0, 4.0, 8.0)
    assert checkpoint.names() == ["model.embed_tokens.weight"]


def test_what_is_not_supported_is_named(tmp_path: Path):
    def rejected(name: str, change, architecture: str = "llama") -> str:
        path = tmp_path / f"{name}.gguf"
        writer = gguf_writer(path, architecture)
        add_embedding(writer)
        change(writer)
        finish(writer)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(path)
        return str(caught.value)

    assert "'bert'" in rejected("architecture", lambda writer: None, "bert")
    assert "'yarn'" in rejected("yarn", lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN))
    assert "mixture of experts" in rejected("experts", lambda writer: writer.add_expert_count(8))
    assert "partial rotation" in rejected("partial", lambda writer: writer.add_rope_dimension_count(4))
    assert "split GGUF" in rejected("split", lambda writer: writer.add_uint16("split.count", 3))
    unknown = rejected("unknown", lambda writer: writer.add_tensor("blk.0.attn_qkv.weight", random_array(4, 32)))
    assert "blk.0.attn_qkv.weight" in unknown


def test_a_file_cut_anywhere_is_refused(tmp_path: Path):
    writer = gguf_writer(tmp_path / "whole.gguf")
    add_embedding(writer)
    finish(writer)
    whole = (tmp_path / "whole.gguf").read_bytes()
    header = read_gguf_header(tmp_path / "whole.gguf")
    end = max(info.offset + info.num_bytes for info in header.tensors.values())
    for length in [*range(0, 400, 7), end - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"cut\.gguf"):
            open_checkpoint(tmp_path / "cut.gguf")


def test_a_damaged_header_is_an_error_and_takes_no_memory(tmp_path: Path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04 something else")
    with pytest.raises(CheckpointError, match="no GGUF file"):
        open_checkpoint(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(CheckpointError, match="version 1"):
        open_checkpoint(path)
    huge_string = struct.pack("<Q", 1) + b"k" + struct.pack("<IQ", 8, 1 << 60)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + huge_string)
    with pytest.raises(CheckpointError, match="past its end"):
        open_checkpoint(path)


def test_the_header_agrees_with_the_gguf_packages_reader(tmp_path: Path):
    path = tmp_path / "model.gguf"
    writer = gguf_writer(path)
    add_embedding(writer)
    writer.add_tensor("blk.0.attn_q.weight", random_array(HIDDEN, HIDDEN).astype(np.float16))
    writer.add_token_list(["a", "é", "日本", ""])
    writer.add_token_scores([0.5, -1.0, 2.0, 0.0])
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages }}")
    finish(writer)
    theirs, ours = gguf.GGUFReader(path), read_gguf_header(path)
    for name, value in ours.metadata.items():
        assert theirs.fields[name].contents() == value
    assert len([name for name in theirs.fields if not name.startswith("GGUF.")]) == len(ours.metadata)
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert info.shape == tuple(reversed(tensor.shape.tolist()))
        assert (info.offset, info.num_bytes, info.type) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)


def test_smollm2_is_what_its_makers_published(smollm2_path: Path):
    checkpoint = open_checkpoint(smollm2_path)
    config = checkpoint.config
    assert config.architecture == "LlamaForCausalLM"
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (30, 576, 1536)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (9, 3, 64)
    assert (config.vocab_size, config.max_position) == (49152, 8192)
    assert (config.rope.theta, config.rope.scaling) == (100000.0, None)
    assert config.rms_norm_eps == pytest.approx(1e-5)
    assert config.tie_word_embeddings
    assert config.eos_token_ids == (2,)
    assert len(checkpoint.names()) == 272
    assert not checkpoint.has("lm_head.weight")
    assert checkpoint.tensor("model.embed_tokens.weight").shape == (49152, 576)
    assert checkpoint.tensor("model.layers.29.self_attn.k_proj.weight").shape == (192, 576)
    assert checkpoint.total_bytes < smollm2_path.stat().st_size
