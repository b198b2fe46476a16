"""From how many rows on ranks draw together rather than from gathered logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import parhelion
from parhelion.distributed import sampling_model
from parhelion.distributed.collectives import Link, network
from parhelion.distributed.devices import preset
from parhelion.distributed.group import Group
from parhelion.distributed.sampling import Among
from parhelion.distributed.sampling_model import Crossover, SamplingModel, crossover
from parhelion.ops.contract import Contract
from parhelion.ops.resolve import Resolver
from parhelion.packs.store import read_pack
from tests.distributed.sample import H100

SHIPPED = Path(parhelion.__file__).parent / "packs" / "shipped" / "h200.zip"
GPU = torch.device("meta")
"""No CPU, and none that must be here."""

SLOW = network(0.1)


class Measured(Resolver):
    """Knows what a draw from all logits takes."""

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        return 100.0


class OfPack(Resolver):
    """Knows what the H200's pack says of one op."""

    def __init__(self) -> None:
        super().__init__(GPU)
        rows = read_pack(SHIPPED).pack.rows
        self._rows = {(row.contract, row.num_tokens): row.best.time_us for row in rows}

    def time_us(self, contract: Contract, num_tokens: int) -> float | None:
        return self._rows.get((contract.key(), num_tokens))


class Follower(Group):
    """The second of two ranks, whose first one says what it is told here."""

    def from_first(self, values: torch.Tensor) -> torch.Tensor:
        return torch.tensor([2, 4, -1])


def model_of(link: Link, num_ranks: int = 2) -> SamplingModel:
    return SamplingModel(151936, num_ranks, 2, H100.ceilings.bandwidth, link, Resolver(GPU))


@pytest.mark.parametrize(("among", "gigabytes_per_s"), [(Among.FEW, 5), (Among.ALL, 5), (Among.ANY, 0.6)])
def test_from_the_crossover_on_it_is_quicker_not_to_gather(among: Among, gigabytes_per_s: float) -> None:
    model = model_of(network(gigabytes_per_s))
    least = model.least_rows(among)
    assert least > 1
    assert model.shared_us(least, among) < model.gathered_us(least)
    assert model.shared_us(least // 2, among) >= model.gathered_us(least // 2)


def test_the_documents_say_what_the_model_does_for_two_to_eight_h200s() -> None:
    h200, resolver = preset("h200"), OfPack()
    found = []
    for num_ranks in (2, 4, 8):
        fast, between, slow = (
            SamplingModel(151936, num_ranks, 2, h200.ceilings.bandwidth, link, resolver)
            for link in (h200.link, network(50), network(5))
        )
        asked = [(model, among) for model in (fast, between, slow) for among in (Among.FEW, Among.ALL)]
        least = [model.least_rows(among) for model, among in [*asked, (slow, Among.ANY)]]
        found.append(f"| {' | '.join('never' if each < 0 else str(each) for each in (num_ranks, *least))} |")
    documents = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text()
    assert "\n".join(found) in documents


def test_slower_links_and_more_ranks_are_for_candidates() -> None:
    by_link = [model_of(link, 4).least_rows(Among.FEW) for link in (SLOW, network(50), H100.link)]
    # The last of them is never the quicker way.
    assert 0 < by_link[0] < by_link[1]
    assert by_link[2] == -1
    gains = [
        model.gathered_us(256) - model.shared_us(256, Among.FEW)
        for model in (model_of(H100.link, n) for n in (2, 4, 8))
    ]
    assert gains == sorted(gains)


def test_a_search_costs_more_than_either_other_way() -> None:
    for num_rows in (1, 16, 256):
        few, whole, search = (model_of(SLOW).shared_us(num_rows, among) for among in Among)
        assert max(few, whole) < search


def test_what_a_pack_says_of_the_draw_takes_the_place_of_its_floor() -> None:
    by_floor, by_pack = (
        SamplingModel(1000, 2, 2, 1e12, SLOW, resolver).gathered_us(8) for resolver in (Resolver(GPU), Measured(GPU))
    )
    # 8 rows of 4,000 bytes at 1 TB/s take next to nothing but their launch.
    assert by_pack - by_floor == pytest.approx(100.0 - 1.5, abs=0.1)


def test_processes_on_a_cpu_always_draw_together() -> None:
    assert crossover(1000, Group(1, 2), torch.float32, Resolver(torch.device("cpu"))) == Crossover((1, 1, 1))


@pytest.mark.parametrize("device", [H100.device, "a GPU that nobody knows"])
def test_ranks_do_as_the_first_one_does(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_model, "device_name", lambda _: device)
    found = crossover(151936, Follower(1, 2), torch.bfloat16, Resolver(GPU))
    assert found == Crossover((2, 4, None))
    assert [found.shares(3, among) for among in Among] == [True, False, False]
    assert found.shares(4, Among.ALL)


def test_nothing_is_said_of_a_gpu_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_model, "device_name", lambda _: "a GPU that nobody knows")
    assert sampling_model.sampling_model(1000, 2, torch.bfloat16, Resolver(GPU)) is None
    monkeypatch.setattr(sampling_model, "device_name", lambda _: H100.device)
    known = sampling_model.sampling_model(1000, 2, torch.bfloat16, Resolver(GPU))
    assert known is not None
    assert known.link == H100.link
    monkeypatch.setattr(sampling_model, "why_not_one_machine", lambda: "its ranks are on 2 machines")
    apart = sampling_model.sampling_model(1000, 2, torch.bfloat16, Resolver(GPU))
    assert apart is not None
    assert apart.link.name == "network"
