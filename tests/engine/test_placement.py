"""Which GPUs replicas and ranks take, where there are so many, and how they share a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parhelion.config import EngineConfig
from parhelion.engine.ranks import placement
from parhelion.engine.ranks.placement import rank_device, rank_threads, replica_config
from parhelion.errors import ConfigError


def config_of(**options: Any) -> EngineConfig:
    return EngineConfig(model="any", **options)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.parametrize(
    ("options", "devices"),
    [
        ({}, [["cuda:0"]]),
        ({"device": "cuda:3"}, [["cuda:3"]]),
        ({"tp": 2, "device": "cuda:2"}, [["cuda:2", "cuda:3"]]),
        ({"dp": 4}, [["cuda:0"], ["cuda:1"], ["cuda:2"], ["cuda:3"]]),
        ({"dp": 2, "tp": 2, "device": "cuda"}, [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"]]),
        ({"dp": 2, "device": "cuda:1"}, [["cuda:1"], ["cuda:2"]]),
        ({"tp": 2, "pp": 2}, [["cuda:0", "cuda:1", "cuda:2", "cuda:3"]]),
        ({"dp": 2, "pp": 2}, [["cuda:0", "cuda:1"], ["cuda:2", "cuda:3"]]),
    ],
)
@pytest.mark.usefixtures("four_gpus")
def test_every_rank_of_every_replica_has_a_gpu_of_its_own(options: dict[str, Any], devices: list[list[str]]) -> None:
    config = config_of(**options)
    replicas = [replica_config(config, replica) for replica in range(config.dp)]
    assert [[str(rank_device(each, rank)) for rank in range(config.num_ranks)] for each in replicas] == devices


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dp": 5}, "dp is 5, which takes 5 GPUs from cuda:0 on, but this machine has 4 GPUs"),
        ({"dp": 2, "tp": 4}, "dp is 2 and tp is 4, which takes 8 GPUs from cuda:0 on, but this machine has 4 GPUs"),
        ({"dp": 3, "device": "cuda:2"}, "dp is 3, which takes 3 GPUs from cuda:2 on"),
        ({"tp": 2, "device": "cuda:3"}, "tp is 2, which takes 2 GPUs from cuda:3 on, but this machine has 4 GPUs"),
        ({"pp": 5}, "pp is 5, which takes 5 GPUs from cuda:0 on, but this machine has 4 GPUs"),
        ({"pp": 2, "tp": 2, "dp": 2}, "dp is 2 and tp is 2 and pp is 2, which takes 8 GPUs from cuda:0 on"),
        ({"dp": 2, "device": "cuda:4"}, "device is cuda:4, but this machine has 4 GPUs"),
    ],
)
@pytest.mark.usefixtures("four_gpus")
def test_what_cannot_be_had_is_refused_with_how_many_there_are_or_why(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        rank_device(replica_config(config_of(**options), 0), 0)
    assert str(refused.value).startswith(said)


def test_on_a_cpu_all_ranks_of_all_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "usable_cores", lambda: 12)
    config = config_of(device="cpu", dp=3, tp=2)
    assert replica_config(config, 2) == config
    assert rank_device(config, 1) == torch.device("cpu")
    assert rank_threads(config) == 2
    assert rank_threads(config_of(device="cpu", dp=3, tp=2, pp=2)) == 1
    assert rank_threads(config_of(device="cpu", pp=4)) == 3
    assert rank_threads(config_of(device="cpu", dp=20)) == 1
    assert rank_threads(config_of(device="cpu", dp=3, threads=7)) == 7
