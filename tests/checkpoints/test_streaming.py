"""Streamed safetensors: the same tensors as through a memory map, in pieces, and with little memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from parhelion.errors import CheckpointError
from parhelion.models import safetensors_stream
from parhelion.models.checkpoint import open_checkpoint
from parhelion.models.weights import CheckpointWeights
from parhelion.platform.memory import peak_resident_memory
from tests.checkpoints.tiny import write_config, write_sharded, write_single

CPU = torch.device("cpu")


def of_every_dtype() -> dict[str, torch.Tensor]:
    whole = torch.arange(-6, 6, dtype=torch.float32).reshape(3, 4)
    dtypes = [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.bool,
    ]
    tensors = {str(dtype): whole.to(dtype) for dtype in dtypes}
    return tensors | {"uint8": whole.abs().to(torch.uint8), "scalar": torch.tensor(3.5), "empty": torch.empty(0, 4)}


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_streamed_tensors_are_as_they_were_saved(tmp_path: Path, write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(safetensors_stream, "_STAGING_BYTES", 1000)  # several pieces a tensor, the last one partial
    saved = write(tmp_path)
    with open_checkpoint(tmp_path, CPU) as checkpoint:
        read = {name: checkpoint.tensor(name) for name in reversed(checkpoint.names())}
    assert read.keys() == saved.keys()
    for name, tensor in saved.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_every_dtype_is_streamed(tmp_path: Path):
    saved = of_every_dtype()
    save_file(saved, write_config(tmp_path) / "model.safetensors", metadata={"format": "pt"})
    with open_checkpoint(tmp_path, CPU) as checkpoint:
        for name, tensor in saved.items():
            read = checkpoint.tensor(name)
            assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
            assert torch.equal(read.double(), tensor.double())


def test_what_is_wrong_with_a_stream_is_said(tmp_path: Path):
    write_single(tmp_path)
    checkpoint = open_checkpoint(tmp_path, CPU)
    with pytest.raises(CheckpointError, match=r"no tensor lm_head\.weight"):
        checkpoint.tensor("lm_head.weight")
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="became shorter while it was read"):
        [checkpoint.tensor(name) for name in checkpoint.names()]
    checkpoint.close()
    with pytest.raises(CheckpointError, match="is closed"):
        checkpoint.tensor("model.norm.weight")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_checkpoint(tmp_path, CPU)


def test_weights_count_what_they_hand_out(tmp_path: Path):
    saved = write_single(tmp_path)
    steps: list[tuple[int, int]] = []
    with open_checkpoint(tmp_path) as checkpoint:
        weights = CheckpointWeights(checkpoint, lambda done, total: steps.append((done, total)), CPU)
        for name, tensor in saved.items():
            assert torch.equal(weights.get(name, *tensor.shape), tensor)
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert weights.num_bytes == sum(tensor.nbytes for tensor in saved.values())


_PEAK = """
import sys, pathlib, torch
from parhelion.models.checkpoint import open_checkpoint
from parhelion.platform.memory import peak_resident_memory
checkpoint = open_checkpoint(pathlib.Path(sys.argv[1]), torch.device("cpu") if sys.argv[2] == "stream" else None)
before = peak_resident_memory()
for name in checkpoint.names():
    checkpoint.tensor(name).max()
print(peak_resident_memory() - before)
"""


def test_streaming_holds_little_of_a_file_in_memory(tmp_path: Path):
    part = 16 << 20
    save_file(
        {f"t{i}": torch.full((part,), i, dtype=torch.uint8) for i in range(18)},
        write_config(tmp_path) / "model.safetensors",
    )

    def peak(how: str) -> int:
        command = [sys.executable, "-c", _PEAK, str(tmp_path), how]
        # The C library gives back what is freed at once; left to itself it keeps more or less of it, as it happens.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
        return int(done.stdout)

    # The file's 288 MiB stay mapped; a stream holds 32 MiB of buffer, and a tensor of 16 MiB while the next is read.
    assert peak("stream") < 150 << 20
    assert peak("map") > 250 << 20


def test_the_peak_of_memory_only_grows():
    before = peak_resident_memory()
    block = torch.ones(32 << 20, dtype=torch.uint8)
    during = peak_resident_memory()
    del block
    assert 10 << 20 < before <= during <= peak_resident_memory()
