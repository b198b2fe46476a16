"""``parhelion doctor``: what it finds, as JSON and as tables, and what it must not load for that."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from parhelion.cli.doctor import check_device, check_pack, check_torch, examine_providers
from parhelion.cli.main import build_app
from parhelion.ops.provider import Availability
from parhelion.ops.registry import op, op_names
from parhelion.ops.tile_programs import providers_of
from parhelion.packs import location
from parhelion.packs.format import ModelEntry
from parhelion.packs.store import write_pack
from tests.packs import sample

runner = CliRunner()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    properties = SimpleNamespace(multi_processor_count=132, total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "cuda", "13.0")


def findings(port: int = 0) -> dict[str, dict[str, Any]]:
    result = runner.invoke(build_app(), ["doctor", "--json", "--port", str(port)])
    assert result.exit_code == 0
    return {finding["topic"]: finding for finding in json.loads(result.stdout)}


def test_every_topic_is_reported_as_json(no_gpu: None) -> None:
    found = findings()
    for topic in ("python", "torch", "device", "pack", "cpu", "memory", "disk", "c++ compiler", "models", "port"):
        assert found[topic]["detail"]
    assert found["linear: torch"]["state"] == "ok"


def test_every_provider_of_every_op_is_reported_as_json_with_its_reason(no_gpu: None) -> None:
    found = findings()
    for name in op_names():
        for provider in op(name).providers:
            finding = found[f"{name}: {provider.name}"]
            why_not = provider.why_not(torch.device("cpu"))
            assert finding["state"] == ("ok" if why_not is None else "note")
            assert finding["detail"] == (why_not or "available")


def test_a_taken_port_is_noted() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = findings(taken.getsockname()[1])["port"]
    assert finding["state"] == "note"
    assert "--port" in finding["detail"]


def test_the_tables_name_who_can_serve_an_op_and_give_each_reason_once(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HELION_INTERPRET", raising=False)
    result = runner.invoke(build_app(), ["doctor", "--port", "0"])
    assert result.exit_code == 0
    [line] = [line for line in result.output.splitlines() if line.strip().startswith("rms_norm ")]
    assert "torch" in line
    assert "helion, flashinfer, vllm" in line
    reasons = [line for line in result.output.splitlines() if "HELION_INTERPRET=1" in line]
    assert len(reasons) == 1
    assert f"{sum(op(name).tile_programs == 'helion' for name in op_names())} ops" in reasons[0]
    [gluon] = [line for line in result.output.splitlines() if "launched from a pack" in line]
    assert f"{sum('gluon' in providers_of(name) for name in op_names())} ops" in gluon


def test_without_a_gpu_the_device_is_the_cpu(no_gpu: None) -> None:
    finding = check_device()
    assert (finding.topic, finding.state) == ("device", "ok")
    assert "no GPU" in finding.detail
    assert "CPU" in finding.detail


def test_a_gpu_is_named_with_what_it_has_free(two_gpus: None) -> None:
    assert check_device().detail == "NVIDIA H100 80GB HBM3 as cuda:0, 70.00 GiB free; 2 GPUs in all"
    assert "built for CUDA 13.0" in check_torch().detail


def test_a_gpu_without_a_pack_is_told_what_serves_instead_and_the_way_to_one(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(location, "SHIPPED", Path("nowhere"))
    found = findings()["pack"]
    assert found["state"] == "note"
    for said in ("NVIDIA H100 80GB HBM3", "sm_90", "untuned", "parhelion tune"):
        assert said in found["detail"]


def test_a_pack_for_the_gpu_is_named_with_what_it_holds(two_gpus: None, tmp_path: Path) -> None:
    write_pack(sample.pack(), sample.FILES, tmp_path / "packs" / "mine.zip")
    found = findings()["pack"]
    assert found["state"] == "ok"
    assert "h100-sxm with 4 rows for qwen3-8b none: it was measured on NVIDIA H100 80GB HBM3" in found["detail"]


def test_a_pack_without_a_ranks_rows_is_noted_and_one_with_them_is_not(two_gpus: None, tmp_path: Path) -> None:
    write_pack(sample.pack(), sample.FILES, tmp_path / "packs" / "mine.zip")
    finding = check_pack(tp=2)
    assert finding.state == "note"
    assert finding.detail.endswith("parhelion tune MODEL --tp 2 makes them")
    assert check_pack(tp=1).state == "ok"
    of_ranks = (ModelEntry("qwen3-8b", "none", (sample.RMS_NORM, sample.GEMM), 2),)
    write_pack(sample.pack(models=of_ranks), sample.FILES, tmp_path / "packs" / "mine.zip")
    finding = check_pack(tp=2)
    assert finding.state == "ok"
    assert "for qwen3-8b none tp 2: it was measured" in finding.detail


def test_providers_are_asked_about_the_device_that_auto_takes(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def report(device: torch.device) -> list[Availability]:
        asked.append(device)
        return []

    monkeypatch.setattr("parhelion.ops.registry.provider_report", report)
    assert examine_providers() == []
    assert asked == [torch.device("cuda", 0)]


def test_asking_every_provider_loads_no_kernel_compiler() -> None:
    code = (
        "import sys, parhelion.cli.doctor as d\n"
        "d.examine_providers()\n"
        "print([name for name in ('helion', 'triton', 'vllm', 'flashinfer', 'deep_gemm') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "[]", result.stderr
