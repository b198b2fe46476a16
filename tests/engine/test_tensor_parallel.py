"""What several ranks are refused, and who may be one."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import zmq

from parhelion.config import EngineConfig
from parhelion.distributed.given_up import Releaser
from parhelion.distributed.group import Group
from parhelion.engine.ranks.messages import FromRank, Hello, Join, Loaded, Refused, ToRank
from parhelion.engine.ranks.port import RankPort
from parhelion.engine.ranks.processes import RankProcesses
from parhelion.engine.ranks.tensor_parallel import OtherRanks, check_tp
from parhelion.errors import ConfigError, EngineDeadError
from parhelion.models.config import ModelConfig, RopeConfig
from parhelion.quantization import FP8_BLOCK, INT8_PER_TOKEN, UNQUANTIZED, QuantScheme


def model(**changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "architecture": "LlamaForCausalLM",
        "vocab_size": 1001,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_layers": 2,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope": RopeConfig(),
        "max_position": 64,
        "tie_word_embeddings": False,
    }
    return ModelConfig(**values | changes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tp": 0}, "tp is 0; it must be at least 1"),
        ({"tp": 2, "executor": "inproc"}, "executor is inproc, which runs one rank, and tp is 2"),
        ({"executor": "mpi"}, "executor is 'mpi'; it must be one of auto, inproc, multiproc, ray"),
        ({"executor": "ray"}, "executor is ray, which runs ranks on several machines, and tp and pp are 1"),
        ({"executor": "ray", "tp": 2, "device": "cuda:1"}, "device is cuda:1, but Ray chooses among the GPUs"),
        ({"tp": 2, "interface": "eth0"}, "ray_address and interface are for ranks on several machines"),
        ({"tp": 2, "ray_address": "10.0.0.1:6379"}, "ray_address and interface are for ranks on several machines"),
        ({"pp": 0}, "pp is 0; it must be at least 1"),
        ({"pp": 2, "executor": "inproc"}, "executor is inproc, which runs one rank, and pp is 2"),
        ({"dp": 0}, "dp is 0; it must be at least 1"),
        ({"heartbeat_timeout_s": 0.5}, "heartbeat_timeout_s is 0.5; it must be at least 1, or 0 to wait for ever"),
        ({"step_timeout_s": 0.5}, "step_timeout_s is 0.5; it must be at least 1, 0 to wait for ever, or left out"),
        ({"dp": 2, "executor": "inproc"}, "executor is inproc, which runs one engine, and dp is 2"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_loaded(
    options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        EngineConfig(model="any", **options)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("changes", "scheme", "tp", "said"),
    [
        ({}, UNQUANTIZED, 3, "tp is 3, but 8 heads are no multiple of tp 3; tp may be 1, 2, 4, 8"),
        ({"num_heads": 12}, UNQUANTIZED, 6, "tp is 6, but 4 KV heads can be neither divided among tp 6"),
        ({"intermediate_size": 1026}, UNQUANTIZED, 4, "the intermediate size of 1026 cannot be divided by 4"),
        ({"intermediate_size": 1040}, INT8_PER_TOKEN, 2, "cannot be divided by 2 in units of 16"),
        ({}, FP8_BLOCK, 4, "tp is 4, but a rank's keys are 64 wide, no multiple of 128 (fp8_block); tp may be 1, 2"),
    ],
)
def test_models_that_do_not_divide_are_refused_with_sizes_that_work(
    changes: dict[str, int], scheme: QuantScheme, tp: int, said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_tp(model(**changes), scheme, tp)
    assert said in str(refused.value)


@pytest.mark.parametrize("tp", [1, 2, 4, 8])
def test_an_uneven_vocabulary_and_shared_kv_heads_are_no_obstacle(tp: int) -> None:
    check_tp(model(), UNQUANTIZED, tp)


def test_what_was_given_up_because_a_rank_ended_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where nothing raises: the watcher ends what the device waits for."""

    class Ended:
        def check(self) -> None:
            raise EngineDeadError("rank 1 was killed")

    left: list[bool] = []
    monkeypatch.setattr(Releaser, "give_up", lambda self: left.append(True))
    others = OtherRanks.__new__(OtherRanks)
    vars(others).update(_processes=Ended(), _closed=threading.Event(), _failure=None)
    with others.blamed():
        pass
    others._watch(Releaser(torch.device("cpu"), Group(0, 2)).give_up)
    assert left == [True]
    with pytest.raises(EngineDeadError, match="rank 1 was killed"), others.blamed():
        pass
    with pytest.raises(EngineDeadError, match="rank 1 was killed"), others.blamed():
        raise RuntimeError("CUDA error")


def test_an_error_that_no_other_rank_is_behind_names_this_one() -> None:
    class Alive:
        def check_for(self, seconds: float) -> None:
            return

    others = OtherRanks.__new__(OtherRanks)
    vars(others).update(_processes=Alive(), _failure=None)
    with (
        pytest.raises(EngineDeadError, match=r"rank 0 on .* \(process \d+\) failed: RuntimeError: NCCL error"),
        others.blamed(),
    ):
        raise RuntimeError("NCCL error\nand where")


class Peer:
    """Somebody who has found the port."""

    def __init__(self, port: RankPort) -> None:
        self.socket = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.connect(port.address)

    def send(self, message: FromRank | bytes) -> None:
        self.socket.send(message if isinstance(message, bytes) else msgspec.msgpack.encode(message))

    def receive(self) -> ToRank:
        assert self.socket.poll(2000)
        message: ToRank = msgspec.msgpack.decode(self.socket.recv(), type=ToRank)
        return message


def test_ranks_are_given_up_though_a_thread_that_hangs_has_the_line_to_them(tmp_path: Path) -> None:
    ranks = RankProcesses(EngineConfig(model="none"), tmp_path)

    def look() -> None:
        with suppress(EngineDeadError):
            ranks.check()

    looking = threading.Thread(target=look)
    giving_up = threading.Thread(target=ranks.give_up, args=(EngineDeadError("late"),))
    try:
        # As by a send that does not return.
        with ranks._port._lock:
            looking.start()
            while not ranks._checking.locked():
                time.sleep(0.01)
            giving_up.start()
            giving_up.join(10)
            assert not giving_up.is_alive()
        looking.join()
        with pytest.raises(EngineDeadError, match="late"):
            ranks.check()
    finally:
        giving_up.join()
        ranks.close()


def test_whoever_does_not_know_the_secret_is_refused_and_not_heard() -> None:
    port = RankPort()
    rank, stranger = Peer(port), Peer(port)
    try:
        for said in (Hello(1, "guessed", "elsewhere"), Loaded(1, 1), b"\xc1", Hello(1, "", "elsewhere")):
            stranger.send(said)
            assert port.receive(0.2) is None
            refused = stranger.receive()
            assert isinstance(refused, Refused)
            assert "secret" in refused.message
        assert port.hosts == {}
        rank.send(Hello(1, port.secret, "here"))
        assert port.receive(2.0) == (1, Hello(1, port.secret, "here"))
        port.send(Join("a-path"))
        assert rank.receive() == Join("a-path")
        assert not stranger.socket.poll(100)
        # Nobody takes a rank's place.
        stranger.send(Hello(1, port.secret, "elsewhere"))
        assert port.receive(0.2) is None
        assert port.hosts == {1: "here"}
    finally:
        rank.socket.close(0)
        stranger.socket.close(0)
        port.close()


def test_secrets_are_of_one_start() -> None:
    ports = [RankPort(), RankPort()]
    try:
        assert ports[0].secret != ports[1].secret
        assert len(ports[0].secret) == 64
    finally:
        for port in ports:
            port.close()
