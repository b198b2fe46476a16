"""Which pack serves on a device, what is refused and why, and what is said where none serves."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from parhelion.errors import PackError
from parhelion.ops.choose_pack import expected_cost, find_pack, pack_kernels
from parhelion.packs import location
from parhelion.packs.store import write_pack
from tests.packs import sample

A100 = msgspec.structs.replace(sample.H100, device="NVIDIA A100-SXM4-80GB", target="sm_80", num_processors=108)


@pytest.fixture(autouse=True)
def packs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which packs are looked for."""
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path))
    monkeypatch.setattr(location, "SHIPPED", tmp_path / "none")
    return tmp_path / "packs"


def put(packs: Path, name: str, **changes: object) -> Path:
    write_pack(sample.pack(name=name, **changes), sample.FILES, packs / f"{name}.zip")
    return packs / f"{name}.zip"


def test_auto_takes_the_devices_own_pack_and_off_takes_none(packs: Path) -> None:
    put(packs, "a-h200", fingerprint=sample.H200)
    put(packs, "b-h100")
    found = find_pack("auto", sample.H100)
    assert found.chosen is not None
    assert found.chosen.stored.pack.name == "b-h100"
    assert found.notes == ()
    assert [each.stored.pack.name for each in found.others] == ["a-h200"]
    assert find_pack("b-h100", sample.H100).others == ()
    assert find_pack("off", sample.H100).chosen is None


def test_a_damaged_pack_is_passed_over_in_words_and_another_serves(packs: Path) -> None:
    path = put(packs, "a-damaged")
    path.write_bytes(path.read_bytes()[:200])
    put(packs, "b-whole")
    found = find_pack("auto", sample.H100)
    assert found.chosen is not None
    assert found.chosen.stored.pack.name == "b-whole"
    [note] = found.notes
    assert note.startswith("a pack is passed over: ")
    assert "a-damaged.zip" in note


def test_a_named_pack_of_another_architecture_is_refused_with_the_way_out(packs: Path) -> None:
    put(packs, "h100")
    with pytest.raises(PackError, match=r"pack h100 cannot be used: its binaries are for nvidia sm_90 .* sm_80"):
        find_pack("h100", A100)


def test_a_named_pack_that_is_damaged_is_an_error(packs: Path) -> None:
    path = put(packs, "h100")
    path.write_bytes(b"PK")
    with pytest.raises(PackError, match=r"h100\.zip"):
        find_pack("h100", sample.H100)


def test_without_a_pack_it_is_said_what_serves_what_that_costs_and_how_to_get_one(packs: Path) -> None:
    untuned = sample.row(16, untuned_us=5.0, best=sample.candidate(time_us=4.0))
    put(packs, "h100", rows=(untuned,))
    found = find_pack("auto", A100)
    assert found.chosen is None
    first, second = found.notes
    for said in ("no pack is for NVIDIA A100-SXM4-80GB (sm_80; known: h100 (sm_90))", "untuned", "parhelion tune"):
        assert said in first
    assert second.endswith("measured on NVIDIA H100 80GB HBM3, of the tuned time: rms_norm 1.25x")


def test_the_expected_cost_is_that_of_whom_the_table_chooses(packs: Path) -> None:
    gemm = sample.row(16, sample.GEMM, best=sample.candidate(time_us=4.0), runners_up=(sample.candidate("torch", 6.0),))
    assert expected_cost(sample.pack(rows=(gemm,))) is not None
    assert "linear 1.50x" in str(expected_cost(sample.pack(rows=(gemm,))))
    assert expected_cost(sample.pack(rows=(sample.row(16),))) is None


def test_a_cpu_has_no_use_for_packs() -> None:
    assert pack_kernels("auto", torch.device("cpu")) == (None, [])
    with pytest.raises(PackError, match="packs are for GPUs: the device is cpu"):
        pack_kernels("h100", torch.device("cpu"))
