"""What is asked of a Ray cluster, what its machines are refused for, and what is given back."""

from __future__ import annotations

import os
import subprocess
from typing import Any

import msgspec
import pytest
import torch

from parhelion.config import EngineConfig
from parhelion.distributed.interfaces import loopback
from parhelion.engine.ranks import placement, ray_actor, ray_hosts
from parhelion.engine.ranks.messages import RankOptions
from parhelion.engine.ranks.placement import rank_device, rank_hosts, replica_config
from parhelion.engine.ranks.ray_hosts import RayHosts
from parhelion.errors import ConfigError, EngineDeadError
from tests.engine.fake_ray import FakeRay, Node

HERE = Node("here", {"CPU": 8.0})
THERE = Node("there", {"CPU": 8.0})


def config_of(**options: Any) -> EngineConfig:
    return EngineConfig(**{"model": "any", "tp": 2, "executor": "ray", "device": "cpu", **options})


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets a cluster be the one that Ray knows."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def put(cluster: FakeRay) -> FakeRay:
        for module in (ray_hosts, ray_actor):
            monkeypatch.setattr(module, "ray", cluster)
        for name in ("placement_group", "placement_group_table", "remove_placement_group"):
            monkeypatch.setattr(ray_hosts, name, getattr(cluster, name))
        monkeypatch.setattr(ray_hosts, "PlacementGroupSchedulingStrategy", lambda *_, **given: given)
        monkeypatch.setattr(ray_actor, "usable_cores", lambda: 12)
        return cluster

    return put


def test_every_rank_gets_a_cpu_and_the_first_one_on_this_machine(use: Any) -> None:
    cluster = use(FakeRay([HERE, THERE]))
    hosts = RayHosts(config_of(tp=3))
    assert cluster.address == "auto"
    assert cluster.bundles == [{"CPU": 1, "node:here-address": 0.001}, {"CPU": 1}, {"CPU": 1}]
    assert cluster.strategy == "PACK"
    assert [each["scheduling_strategy"]["placement_group_bundle_index"] for each in cluster.actors] == [0, 1, 2]
    assert all((each["num_cpus"], each["num_gpus"]) == (1, 0) for each in cluster.actors)
    assert hosts.interface == loopback()
    assert (hosts.config.device, hosts.config.threads) == ("cpu", 12), "rank 0 has this machine to itself"
    hosts.close()
    assert len(cluster.killed) == 3
    assert cluster.removed
    assert not cluster.is_initialized()
    hosts.close()


def test_ranks_of_a_stage_are_on_one_machine_where_that_can_be(use: Any) -> None:
    cluster = use(FakeRay([HERE, THERE, Node("elsewhere", {"CPU": 8.0})], places=[0, 2, 1, 0, 2, 1]))
    hosts = RayHosts(config_of(tp=2, pp=3))
    assert len(cluster.bundles) == 6
    order = [each["scheduling_strategy"]["placement_group_bundle_index"] for each in cluster.actors]
    assert order == [0, 3, 1, 4, 2, 5]
    assert hosts._hosts == ["here", "here", "elsewhere", "elsewhere", "there", "there"]
    assert hosts.config.threads == 12 // 2
    hosts.close()


def test_a_gpu_each_where_this_machine_has_some(use: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    cluster = use(FakeRay([Node("here", {"CPU": 8.0, "GPU": 4.0}, gpus=[3]), Node("there", {"GPU": 4.0}, gpus=[1])]))
    hosts = RayHosts(config_of(device="auto"))
    assert cluster.bundles == [{"GPU": 1, "node:here-address": 0.001}, {"GPU": 1}]
    assert [(each["num_cpus"], each["num_gpus"]) for each in cluster.actors] == [(0, 1)] * 2
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert hosts.config.device == "cuda", "the one that is visible"
    hosts.close()


class FakeProcess:
    """A rank's process that ends when it is told to."""

    pid = 77

    def __init__(self) -> None:
        self.status: int | None = None

    def wait(self) -> int:
        if self.status is None:
            raise subprocess.TimeoutExpired("rank", 0)
        return self.status


def test_a_rank_gets_the_options_of_its_machine_and_tells_how_it_ends(
    use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeRay([HERE, THERE]))
    started: list[RankOptions] = []
    process = FakeProcess()

    def start(options: RankOptions) -> FakeProcess:
        started.append(options)
        return process

    monkeypatch.setattr(ray_actor, "start_rank", start)
    config = config_of(tp=3, dp=2, interface=loopback().name)
    hosts = RayHosts(config)
    options = RankOptions(config, "/models/any", 1, "tcp://127.0.0.1:1", "secret", 0, "key")
    rank = hosts.start(options)
    assert (rank.host, rank.pid) == ("there", 77)
    # Two of this replica's ranks are there, and there may be two of each.
    own = EngineConfig(**{**vars(config), "device": "cpu", "threads": 12 // 4})
    assert started == [msgspec.structs.replace(options, config=own, interface=loopback())]
    assert rank.ended(0.0) is None
    process.status = -9
    assert rank.ended(0.0) == "was killed by SIGKILL"
    hosts.close()


@pytest.mark.parametrize(
    ("there", "error", "said"),
    [
        (
            Node("there", {}, versions={"parhelion": "9.9", "torch": "1"}),
            ConfigError,
            r"there has parhelion 9.9 and here has parhelion .*install the same on all machines",
        ),
        (
            Node("there", {}, failure=RuntimeError("The actor failed to import\n\nModuleNotFoundError: parhelion")),
            EngineDeadError,
            r"rank 1 cannot start on there: RuntimeError: The actor failed .* ModuleNotFoundError: parhelion",
        ),
    ],
)
def test_machines_that_do_not_fit_together_are_refused_and_all_is_given_back(
    use: Any, there: Node, error: type[Exception], said: str
) -> None:
    cluster = use(FakeRay([HERE, there]))
    with pytest.raises(error, match=said):
        RayHosts(config_of())
    assert len(cluster.killed) == 2
    assert cluster.removed
    assert not cluster.is_initialized()


def test_an_interface_that_a_machine_does_not_have_is_refused_by_name(use: Any) -> None:
    use(FakeRay([HERE, THERE]))
    with pytest.raises(ConfigError, match=r"rank 0 cannot start on here: there is no network interface 'none7'"):
        RayHosts(config_of(interface="none7"))


def test_a_cluster_without_room_is_refused_with_what_it_has(use: Any) -> None:
    cluster = use(FakeRay([HERE, Node("there", {"CPU": 2.0, "GPU": 8.0})], has_room=False))
    with pytest.raises(ConfigError, match=r"no room for 2 ranks .* here: 8 CPUs, 0 GPUs; there: 2 CPUs, 8 GPUs"):
        RayHosts(config_of())
    assert cluster.removed


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"ray is not installed here: pip install 'parhelion\[ray\]'"):
        rank_hosts(config_of())


def test_every_rank_takes_the_first_device_that_ray_lets_it_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "choose_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = config_of(device="cuda", dp=2)
    assert [rank_device(config, rank) for rank in range(2)] == [torch.device("cuda", 0)] * 2
    assert replica_config(config, 1) == config


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "10.0.0.1:"])
def test_addresses_of_another_kind_are_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"ray_address is .*; it must be HOST:PORT"):
        config_of(ray_address=address)
