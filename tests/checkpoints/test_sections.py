"""A rank reads its part of every tensor, and that part is the whole one's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from parhelion.config import EngineConfig
from parhelion.distributed.group import Group
from parhelion.engine.load import load_model
from parhelion.errors import CheckpointError
from parhelion.models import safetensors_stream
from parhelion.models.checkpoint import open_checkpoint
from parhelion.models.weights import CheckpointWeights, DummyWeights
from parhelion.quantization import UNQUANTIZED, LinearWeights, Section, choose_scheme, load_linear
from tests.checkpoints.quantized import FORMATS, PROJECTIONS, write_quantized
from tests.checkpoints.test_gguf_file import interleaved
from tests.checkpoints.tiny import HEADS, HIDDEN, VOCAB, finish, gguf_writer, random_array, write_config
from tests.e2e.tiny_models import TINY_MODELS

CPU = torch.device("cpu")
ATTENTION = "model.layers.0.self_attn"
MLP = "model.layers.0.mlp"
KV_HEADS_OF_TINY = 2
CUTS = [Section(0, 0, 3), Section(0, 2, 5), Section(1, 0, 4), Section(1, 1, 3)]


@pytest.mark.parametrize("device", [None, CPU], ids=["mapped", "streamed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn])
def test_sections_of_safetensors(
    device: torch.device | None, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(tmp_path)
    whole = torch.arange(20).view(5, 4).to(dtype)
    save_file({"before": torch.ones(3), "matrix": whole, "vector": whole[:, 0].clone()}, tmp_path / "model.safetensors")
    monkeypatch.setattr(safetensors_stream, "_STAGING_BYTES", 2 * 4 * dtype.itemsize)  # two rows at a time
    with open_checkpoint(tmp_path, device) as checkpoint:
        assert checkpoint.shape("matrix") == (5, 4)
        for section in CUTS:
            found = checkpoint.section("matrix", section)
            assert found.shape == section.shape((5, 4))
            # A mapped section is a view of pages that are read as they are touched.
            assert device is None or found.untyped_storage().nbytes() == found.nbytes
            assert torch.equal(found.float(), section.of(whole).float())
        assert torch.equal(checkpoint.section("vector", Section(0, 1, 3)).float(), whole[1:3, 0].float())
        with pytest.raises(CheckpointError, match="absent"):
            checkpoint.section("absent", CUTS[0])


def test_sections_of_a_gguf_file_keep_heads_in_their_order(tmp_path: Path) -> None:
    q, out, bias = random_array(HIDDEN, HIDDEN), random_array(HIDDEN, HIDDEN), random_array(HIDDEN)
    writer = gguf_writer(tmp_path / "model.gguf")
    writer.add_tensor("token_embd.weight", random_array(VOCAB, HIDDEN))
    writer.add_tensor("blk.0.attn_q.weight", interleaved(q, HEADS))
    writer.add_tensor("blk.0.attn_q.bias", interleaved(bias, HEADS))
    writer.add_tensor("blk.0.attn_output.weight", out)
    finish(writer)
    head = HIDDEN // HEADS
    rows, columns = Section(0, head, 2 * head), Section(1, head, 2 * head)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert torch.equal(checkpoint.section(f"{ATTENTION}.q_proj.weight", rows), torch.from_numpy(q[head : 2 * head]))
    assert torch.equal(checkpoint.section(f"{ATTENTION}.q_proj.bias", rows), torch.from_numpy(bias[head : 2 * head]))
    found = checkpoint.section(f"{ATTENTION}.o_proj.weight", columns)
    assert torch.equal(found, torch.from_numpy(out[:, head : 2 * head]))


def linear(folder: Path, name: str, sections: tuple[Section, ...], quantization: str | None = None) -> LinearWeights:
    with open_checkpoint(folder) as checkpoint:
        scheme = choose_scheme(checkpoint.config.quantization, quantization)  # type: ignore[arg-type]
        rows, columns = PROJECTIONS[name]
        weights = CheckpointWeights(checkpoint)
        return load_linear(weights, scheme, (name,), (rows,), columns, False, torch.float32, CPU, sections)


@pytest.mark.parametrize("name", FORMATS)
def test_sections_of_stored_codes_have_the_scales_of_the_whole(name: str, tmp_path: Path) -> None:
    write_quantized(tmp_path, name)
    for projection, section in ((f"{MLP}.up_proj", Section(0, 128, 256)), (f"{MLP}.down_proj", Section(1, 128, 256))):
        whole, part = linear(tmp_path, projection, ()), linear(tmp_path, projection, (section,))
        assert part.weight.dtype == whole.weight.dtype
        assert torch.equal(part.weight.float(), section.of(whole.weight.float()))
        assert whole.scales is not None
        assert part.scales is not None
        if name == "fp8-block":
            expected = section.in_blocks(128).of(whole.scales)
        else:
            expected = section.of(whole.scales) if section.dim == 0 else whole.scales
        assert torch.equal(part.scales, expected)


@pytest.mark.parametrize("quantization", ["fp8", "int8"])
def test_what_is_quantized_while_it_is_loaded_has_the_scales_of_the_whole(quantization: str, tmp_path: Path) -> None:
    write_quantized(tmp_path, "int8", plain=tuple(PROJECTIONS), quantization_config=None)
    for projection, section in ((f"{MLP}.up_proj", Section(0, 96, 192)), (f"{MLP}.down_proj", Section(1, 96, 192))):
        whole = linear(tmp_path, projection, (), quantization)
        part = linear(tmp_path, projection, (section,), quantization)
        assert whole.scales is not None
        assert part.scales is not None
        assert torch.equal(part.weight.float(), section.of(whole.weight.float()))
        assert torch.equal(part.scales, section.of(whole.scales) if section.dim == 0 else whole.scales)


def test_the_sum_over_ranks_has_a_bias_once() -> None:
    weights = DummyWeights(0, tied=True)
    weights._make = lambda name, shape: torch.ones(shape)  # type: ignore[method-assign]
    biases = []
    for rank in range(2):
        section = Group(rank, 2).section(1, 8)
        part = load_linear(weights, UNQUANTIZED, ("a",), (4,), 8, True, torch.float32, CPU, (section,))
        assert part.weight.shape == (4, 4)
        assert part.bias is not None
        biases.append(part.bias)
    assert torch.equal(sum(biases), torch.ones(4))


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_read_the_checkpoint_once_and_shared_heads_and_norms_more_often(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = TINY_MODELS[0].write(tmp_path)
    element = 4
    total = sum(parameter.numel() for parameter in model.parameters()) * element
    repeated = sum(p.numel() for name, p in model.named_parameters() if "norm" in name) * (size - 1) * element
    if size > KV_HEADS_OF_TINY:
        kv = sum(p.numel() for name, p in model.named_parameters() if "k_proj" in name or "v_proj" in name)
        repeated += kv * (size // KV_HEADS_OF_TINY - 1) * element
    read = []
    original = CheckpointWeights._handed_out

    def counting(self: CheckpointWeights, tensor: torch.Tensor) -> torch.Tensor:
        read.append(tensor.nbytes)
        return original(self, tensor)

    monkeypatch.setattr(CheckpointWeights, "_handed_out", counting)
    by_rank = []
    for rank in range(size):
        read.clear()
        config = EngineConfig(model=str(tmp_path), dtype="float32", device="cpu", tp=size)
        load_model(config, tmp_path, group=Group(rank, size))
        by_rank.append(sum(read))
    assert sum(by_rank) == total + repeated
    assert max(by_rank) == min(by_rank)


def test_a_section_of_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    save_file({"matrix": torch.zeros(5, 4)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=r"\(5, 4\).*\(6, 4\)"):
        CheckpointWeights(checkpoint).get_section("matrix", Section(0, 0, 3), 6, 4)


def test_dummy_weights_of_ranks_are_those_of_one() -> None:
    whole = DummyWeights(3, tied=False).get("model.layers.0.mlp.up_proj.weight", 8, 6)
    parts = [
        DummyWeights(3, tied=False).get_section("model.layers.0.mlp.up_proj.weight", Group(rank, 2).section(0, 8), 8, 6)
        for rank in range(2)
    ]
    assert torch.equal(torch.cat(parts), whole)
