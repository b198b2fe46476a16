"""Which pack a device gets, and what is said about it."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest

from parhelion.packs.match import choose, match
from parhelion.packs.store import StoredPack
from tests.packs.sample import H100, H200

A100 = msgspec.structs.replace(H100, device="NVIDIA A100-SXM4-80GB", target="sm_80", num_processors=108)
UNMEASURED = msgspec.structs.replace(H100, device="", num_processors=0, memory_bytes=0, bandwidth=0.0)


def test_the_same_device_is_an_exact_match_whatever_its_bandwidth_was_measured_at() -> None:
    found = match(H100, msgspec.structs.replace(H100, bandwidth=2.8e12))
    assert found.level == "exact"
    assert "NVIDIA H100 80GB HBM3" in found.reason


def test_another_device_of_the_target_runs_binaries_and_is_told_what_differs() -> None:
    found = match(H100, H200)
    assert found.level == "same_target"
    for said in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "132 processors too", "1.40 times the bandwidth", "sm_90"):
        assert said in found.reason


def test_a_part_of_a_device_is_not_the_device() -> None:
    found = match(H100, msgspec.structs.replace(H100, num_processors=16))
    assert found.level == "same_target"
    assert "132 processors, and this one has 16" in found.reason


def test_a_pack_that_was_measured_nowhere_says_so() -> None:
    found = match(UNMEASURED, H100)
    assert found.level == "same_target"
    assert "measured on no device" in found.reason


@pytest.mark.parametrize(
    "here", [A100, msgspec.structs.replace(H100, vendor="amd"), msgspec.structs.replace(H100, target="sm_100")]
)
def test_another_target_or_vendor_is_no_match_even_by_the_same_name(here) -> None:
    found = match(H100, here)
    assert found.level == "none"
    assert here.target in found.reason
    assert H100.device in found.reason


def device(name: str, processors: int, bandwidth: float):
    return msgspec.structs.replace(H100, device=name, num_processors=processors, bandwidth=bandwidth)


def test_packs_that_can_be_used_come_by_nearness(stored: Callable[..., StoredPack]) -> None:
    marks = {
        "exact": H200,
        "alike": device("H20x", 130, 4.0e12),
        "same processors": H100,
        "small": device("H20", 78, 4.0e12),
        "unmeasured": UNMEASURED,
    }
    packs = [stored(f"{index}.zip", fingerprint=mark) for index, mark in enumerate(marks.values())]
    names = dict(zip(marks, packs, strict=True))
    other = stored("other.zip", fingerprint=A100)
    for order in itertools.permutations(names):
        chosen = choose([other, *(names[name] for name in order)], H200)
        assert [each.stored for each in chosen] == packs
        assert [each.match.level for each in chosen] == ["exact"] + ["same_target"] * 4
    assert choose([other], H200) == []
    assert choose([], H200) == []


def test_an_exact_match_comes_before_another_device_that_looks_the_same(stored: Callable[..., StoredPack]) -> None:
    twin = stored("twin.zip", fingerprint=msgspec.structs.replace(H200, device="NVIDIA H200 NVL"))
    own = stored("own.zip", fingerprint=H200)
    assert [each.stored for each in choose([twin, own], H200)] == [own, twin]


def test_equals_stay_in_order(stored: Callable[..., StoredPack]) -> None:
    a = stored("a.zip")
    b = stored("b.zip", fingerprint=msgspec.structs.replace(H100, bandwidth=3.3e12))
    for first, second in ((a, b), (b, a)):
        chosen = choose([first, second], msgspec.structs.replace(H100, bandwidth=3.3e12))
        assert [each.stored for each in chosen] == [first, second]
