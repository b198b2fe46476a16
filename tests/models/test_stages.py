"""A model in stages: each has its own layers and reads no others, and one after the other they compute what it does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from parhelion.config import EngineConfig
from parhelion.engine.load import load_model
from parhelion.engine.score import prompt_logits
from parhelion.models.decoder import DecoderModel
from parhelion.models.weights import CheckpointWeights, DummyWeights
from tests.e2e.tiny_models import TinyModel

UNTIED = TinyModel("qwen2-staged", "Qwen2", {"num_hidden_layers": 4})
TIED = TinyModel("llama-staged-tied", "Llama", {"num_hidden_layers": 4, "tie_word_embeddings": True})
WINDOWS = TinyModel(
    "qwen2-staged-windows",
    "Qwen2",
    {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 2},
)
PROMPT = list(range(3, 40))


def config_of(folder: Path, pp: int = 1, **options: object) -> EngineConfig:
    return EngineConfig(model=str(folder), dtype="float32", device="cpu", threads=1, pp=pp, **options)  # type: ignore[arg-type]


def stages_of(folder: Path, pp: int, **options: object) -> list[DecoderModel]:
    config = config_of(folder, pp, **options)
    return [load_model(config, folder, stage=stage).model for stage in range(pp)]


class Chain:
    """Stages that hand over in one process, as one model."""

    def __init__(self, stages: list[DecoderModel], whole: DecoderModel) -> None:
        self.stages = stages
        self.device, self.dtype, self.config = whole.device, whole.dtype, whole.config

    def forward(self, batch: object, kv_cache: list[torch.Tensor]) -> torch.Tensor:
        received = None
        for stage in self.stages:
            own = [kv_cache[layer] for layer in stage.stage.layers]
            received = stage.forward(batch, own, received=received)  # type: ignore[arg-type]
        assert received is not None
        return received

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.stages[-1].compute_logits(hidden)


@pytest.mark.parametrize(
    "options",
    [{}, {"load_format": "dummy"}, {"quantization": "int8"}, {"lm_head_quantization": "fp8"}],
    ids=str,
)
@pytest.mark.parametrize("model", [UNTIED, TIED, WINDOWS], ids=lambda model: model.name)
def test_stages_compute_what_the_whole_model_computes(
    model: TinyModel, options: dict[str, object], tmp_path: Path
) -> None:
    model.write(tmp_path)
    (whole,) = stages_of(tmp_path, 1, **options)
    expected = prompt_logits(whole, PROMPT, 16)
    for pp in (2, 3):
        chain = Chain(stages_of(tmp_path, pp, **options), whole)
        assert torch.equal(prompt_logits(chain, PROMPT, 16), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [UNTIED, TIED], ids=lambda model: model.name)
def test_a_stage_reads_its_layers_and_no_others(
    model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {name for name, _ in model.write(tmp_path).named_parameters()}
    read: list[set[str]] = []
    for kind in (CheckpointWeights, DummyWeights):
        original = kind.get

        def get(self: object, name: str, *shape: int, original: object = original) -> torch.Tensor:
            read[-1].add(name)
            return original(self, name, *shape)  # type: ignore[operator,no-any-return]

        monkeypatch.setattr(kind, "get", get)
    tables = {"model.embed_tokens.weight"}, {"model.norm.weight", "lm_head.weight"}
    if "lm_head.weight" not in names:
        tables = {"model.embed_tokens.weight"}, {"model.norm.weight", "model.embed_tokens.weight"}
    for load_format in ("auto", "dummy"):
        read.clear()
        for stage in range(3):
            read.append(set())
            loaded = load_model(config_of(tmp_path, 3, load_format=load_format), tmp_path, stage=stage).model
            assert loaded.config.num_layers == len(loaded.stage.layers)
            own = {name for name in names if (layer := layer_of(name)) is not None and layer in loaded.stage.layers}
            others = tables[0] if stage == 0 else tables[1] if stage == 2 else set()
            assert {name for name in read[-1] if not name.endswith("bias")} == {
                name for name in own | others if not name.endswith("bias")
            }
        assert set.union(*read) == names


def layer_of(name: str) -> int | None:
    found = re.match(r"model\.layers\.(\d+)\.", name)
    return int(found[1]) if found else None


def test_only_the_ends_take_tokens_and_give_logits(tmp_path: Path) -> None:
    UNTIED.write(tmp_path)
    first, last = stages_of(tmp_path, 2)
    with pytest.raises(ValueError, match="stage 0 of 2 has no output head"):
        first.compute_logits(torch.zeros(1, 64))
    with pytest.raises(ValueError, match="stage 1 has no embedding"):
        prompt_logits(last, PROMPT, 16)
