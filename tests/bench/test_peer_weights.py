"""A vLLM that is only its plugins and its loader gets weights like Parhelion's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from parhelion.bench.compare.engines import ours, peer
from parhelion.bench.compare.peer_weights import ITS_OWN, LIKE_OURS, NOT_TAKEN, PeerWeights
from parhelion.bench.compare.run import Plan, compare
from parhelion.bench.compare.runners.vllm_weights import FILLED
from parhelion.bench.compare.settings import OfflineSettings
from parhelion.config import child_environment
from tests.bench.compare_bench import fake

# What vLLM does with the plugins' group and with dummy weights, by the names that it has for it.
LOADER = """
def initialize_dummy_weights(module, model_config):
    raise AssertionError("the plugin did not take its place")

class DummyModelLoader:
    def load_weights(self, model, model_config):
        for layer in model.modules():
            initialize_dummy_weights(layer, model_config)
"""
PROGRAM = """
import torch
from importlib.metadata import entry_points
for plugin in entry_points(group="vllm.general_plugins"):
    plugin.load()()
from vllm.model_executor.model_loader.dummy_loader import DummyModelLoader

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        weight = torch.zeros(256, 128, dtype=torch.float8_e4m3fn)
        self.weight = torch.nn.Parameter(weight, requires_grad=False)
        self.weight_scale = torch.nn.Parameter(torch.zeros(256, 1), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.ones(256), requires_grad=False)
        self.k_scale = torch.nn.Parameter(torch.tensor(-1.0), requires_grad=False)
        self.counts = torch.nn.Parameter(torch.zeros(3, dtype=torch.int32), requires_grad=False)

model = torch.nn.ModuleDict({
    "proj": Linear(),
    "norm": torch.nn.LayerNorm(64, elementwise_affine=True),
    "embed": torch.nn.Embedding(512, 64, dtype=torch.bfloat16),
    "later": torch.nn.Linear(4, 4, device="meta"),
})
model.norm.weight.data.zero_()
DummyModelLoader().load_weights(model, None)
codes = model.proj.weight.float()
assert (codes == 0).float().mean() < 0.02 and 100 < codes.std() < 125 and codes.abs().max() == 448, codes.std()
weights = codes * model.proj.weight_scale
assert 0.018 < weights.std() < 0.022
assert model.proj.k_scale == -1
assert model.proj.bias.eq(0).all() and model.proj.counts.eq(0).all() and model.norm.weight.eq(1).all()
assert 0.018 < model.embed.weight.float().std() < 0.022
"""


def test_its_loader_draws_as_parhelion_does(tmp_path: Path) -> None:
    site = tmp_path / "site"
    package = site / "vllm" / "model_executor" / "model_loader"
    package.mkdir(parents=True)
    (package / "dummy_loader.py").write_text(LOADER)
    weights = PeerWeights(tmp_path / "weights")
    vllm = weights.given_to(peer("vllm", path=str(site)))
    assert not weights.were_taken
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=child_environment(vllm.environment), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert weights.were_taken


def test_only_vllm_is_given_weights_and_what_it_finds_otherwise_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = PeerWeights(tmp_path / "weights")
    assert weights.given_to(ours()) == ours()
    monkeypatch.setenv("PYTHONPATH", "/inherited")
    path = weights.given_to(peer("vllm")).environment["PYTHONPATH"]
    assert path == f"{tmp_path / 'weights'}:/inherited"
    assert weights.given_to(peer("vllm", path="/a:/b")).environment["PYTHONPATH"].endswith("weights:/a:/b")


@pytest.mark.parametrize(
    ("asked", "takes", "notes"),
    [(True, True, [LIKE_OURS]), (True, False, [LIKE_OURS, NOT_TAKEN]), (False, False, [ITS_OWN])],
)
def test_a_result_says_which_weights_they_were(tmp_path: Path, asked: bool, takes: bool, notes: list[str]) -> None:
    # In the place of Python, and of vLLM: it notes what it was given, and ends.
    stub = tmp_path / "python"
    says = f'echo "$PYTHONPATH" > {tmp_path}/path; ' + (f'echo Linear >> "${FILLED}"' if takes else "")
    stub.write_text(f"#!/bin/sh\n{says}\n")
    stub.chmod(0o755)
    settings = OfflineSettings(batches=(1,), rounds=1, device="cpu", timeout_s=20, peer_weights=asked)
    plan = Plan((peer("vllm", str(stub), str(tmp_path)),), ("tiny",), "offline", settings)
    result = compare(plan, None, lambda text: None, us=fake("parhelion"))
    assert "vllm ended with status 0" in str(result.engines[-1].error)
    assert result.notes[-len(notes) :] == notes
    assert not {LIKE_OURS, ITS_OWN, NOT_TAKEN}.intersection(result.notes[: -len(notes)])
    paths = (tmp_path / "path").read_text().strip().split(":")
    assert len(paths) == 1 + asked
    assert paths[-1] == str(tmp_path)
