"""Serving from a pack: its rows decide by M, and what cannot serve is passed over in words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from parhelion.ops.contract import program_key
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.registry import op
from parhelion.ops.resolve import Resolver
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm.providers import TorchRmsNorm
from parhelion.packs.format import BlockTime, Pack
from tests.ops.packed_norm import CPU, NORM, RECIPE, binary, opened, other, pack, row, tiles
from tests.packs import sample
from tests.platform.fake_library import FakeCuda

FILE = "rms_norm.cubin"


@pytest.fixture
def library() -> FakeCuda:
    return FakeCuda()


def inputs(num_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    x, weight = NORM.sample_inputs(num_tokens, CPU, generator)
    return x, weight


def test_each_size_of_m_is_served_by_whom_its_row_names(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, pack(row(8, tiles(FILE)), row(64, other("torch")), row(512, tiles(FILE))), library)
    launch = kernels.launcher(NORM, op("rms_norm").provider("reference"))
    assert launch is not None
    assert launch.providers == ("helion", "torch")
    assert [launch.provider_at(m) for m in (1, 8, 9, 64, 65, 9000)] == ["helion"] * 2 + ["torch"] * 2 + ["helion"] * 2
    for num_tokens in (1, 8, 65, 512, 9000):
        launch(*inputs(num_tokens))
    assert [each.grid for each in library.launched] == [(m, 1, 1) for m in (1, 8, 65, 512, 9000)]
    x, weight = inputs(9)
    torch.testing.assert_close(launch(x, weight), NORM.reference(x, weight))
    assert len(library.launched) == 5
    assert kernels.num_loaded == 1
    assert kernels.notes == []


def test_a_row_without_its_binary_is_served_by_the_next_candidate_and_that_is_said(
    tmp_path: Path, library: FakeCuda
) -> None:
    rows = (row(8, tiles("gone.cubin"), other("torch")), row(64, tiles(), other("torch")))
    kernels = opened(tmp_path, pack(*rows), library)
    launch = kernels.launcher(NORM, op("rms_norm").provider("reference"))
    assert launch is not None
    assert launch.providers == ("torch",)
    x, weight = inputs(3)
    torch.testing.assert_close(launch(x, weight), NORM.reference(x, weight))
    assert "does not list the binary gone.cubin" in kernels.notes[0]
    assert "holds no binaries for rms_norm(hidden_size=64" in kernels.notes[1]


def test_a_damaged_binary_is_refused_and_the_fallback_serves(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, pack(row(8, tiles(FILE))), library)
    path = tmp_path / "pack" / "bin" / FILE
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    launch = kernels.launcher(NORM, op("rms_norm").provider("torch"))
    assert launch is not None
    assert launch.providers == ("torch",)
    assert "sha256" in kernels.notes[0]


def test_a_launch_that_its_binary_was_not_compiled_for_is_served_by_the_fallback(
    tmp_path: Path, library: FakeCuda
) -> None:
    only_of_8 = msgspec.structs.replace(binary(), recipe=msgspec.structs.replace(RECIPE, equal=(("x.size(0)", 8),)))
    kernels = opened(tmp_path, pack(row(8, tiles(FILE)), binaries=(only_of_8,)), library)
    launch = kernels.launcher(NORM, op("rms_norm").provider("reference"))
    assert launch is not None
    launch(*inputs(8))
    x, weight = inputs(3)
    torch.testing.assert_close(launch(x, weight), NORM.reference(x, weight))
    assert [each.grid for each in library.launched] == [(8, 1, 1)]
    assert "x.size(0) is 3, and its binary was compiled for 8" in kernels.notes[0]


def test_torch_inductor_never_serves_from_a_pack(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, pack(row(8, other("inductor", 1.0), other("torch", 2.0))), library)
    launch = kernels.launcher(NORM, op("rms_norm").provider("reference"))
    assert launch is not None
    assert launch.providers == ("torch",)


def test_a_provider_that_is_not_here_is_passed_over(
    tmp_path: Path, library: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchRmsNorm, "why_not", lambda self, device: "it is not installed")
    kernels = opened(tmp_path, pack(row(8, other("torch"), tiles(FILE, time_us=5.0))), library)
    launch = kernels.launcher(NORM, op("rms_norm").provider("reference"))
    assert launch is not None
    assert launch.providers == ("helion",)
    assert kernels.notes == ["rms_norm: torch cannot serve from pack h100-sxm: it is not installed"]


def test_tile_programs_that_these_ranks_have_no_use_for_are_passed_over(
    tmp_path: Path, library: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    helion = op("rms_norm").provider("helion")
    monkeypatch.setattr(helion, "why_not", lambda device: "no Helion is installed, which a pack does not need")
    kernels = opened(tmp_path / "a", pack(row(8, tiles(FILE), other("torch"))), library)
    launch = kernels.launcher(NORM, op("rms_norm").provider("reference"))
    assert launch is not None
    assert launch.providers == ("helion",)
    monkeypatch.setattr(helion, "refuses", lambda contract: "its ranks are on 2 machines")
    kernels = opened(tmp_path / "b", pack(row(8, tiles(FILE), other("torch"))), library)
    launch = kernels.launcher(NORM, op("rms_norm").provider("reference"))
    assert launch is not None
    assert launch.providers == ("torch",)
    assert kernels.notes == ["rms_norm: helion cannot serve from pack h100-sxm: its ranks are on 2 machines"]


def test_stale_rows_are_not_used(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, pack(row(8, tiles(FILE))), library, hashes={"rms_norm": "1" * 16})
    assert not kernels.holds(NORM)
    assert "measured with other sources" in kernels.notes[0]


def test_a_pack_of_another_variant_serves_and_says_so(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, pack(row(8, tiles(FILE))), library, here=sample.H200)
    assert kernels.holds(NORM)
    assert "measured on NVIDIA H100 80GB HBM3" in kernels.notes[0]


def test_what_a_pack_has_no_rows_for_is_served_by_the_one_behind_it(tmp_path: Path, library: FakeCuda) -> None:
    behind = opened(tmp_path / "b", pack(row(8, tiles("gone.cubin"), tiles(FILE))), library, here=sample.H200)
    content = pack(row(8, tiles(FILE)))
    stale = opened(tmp_path / "a", content, library, here=sample.H200, hashes={"rms_norm": "1" * 16}, behind=behind)
    assert stale.holds(NORM)
    assert stale.time_us(NORM, 8) == behind.time_us(NORM, 8) is not None
    launch = stale.launcher(NORM, op("rms_norm").provider("reference"))
    assert launch is not None
    assert launch.providers == ("helion",)
    launch(*inputs(3))
    assert library.launched[-1].grid == (3, 1, 1)
    variant, old, taken, missing = stale.all_notes()
    assert "and this is NVIDIA H200" in variant
    assert "measured with other sources" in old
    assert "has no rows for: it was measured on NVIDIA H100 80GB HBM3, and this is NVIDIA H200" in taken
    assert "gone.cubin" in missing


def test_a_pack_that_is_enough_leaves_the_one_behind_it_alone(tmp_path: Path, library: FakeCuda) -> None:
    behind = opened(tmp_path / "b", pack(row(8, other("torch"))), library)
    kernels = opened(tmp_path / "a", pack(row(8, tiles(FILE))), library, behind=behind)
    assert Resolver(CPU, pack=kernels).served_by(NORM) == ("helion",)
    assert kernels.all_notes() == []


WIDER = RmsNorm(128, dtype=torch.bfloat16)
WAY = (NORM, WIDER, NORM)


def block_pack(*sizes: int, wider: tuple[int, ...] = (8,), block_us: float = 5.0) -> Pack:
    """Rows of two contracts, and whole blocks of both at the sizes of the first."""
    keys = tuple(contract.key() for contract in WAY)
    return pack(
        *(row(size, tiles(FILE)) for size in sizes),
        *(sample.row(size, WIDER.key(), best=other("torch"), runners_up=()) for size in wider),
        blocks=tuple(BlockTime(keys, size, block_us) for size in sizes),
    )


def test_a_blocks_time_is_that_of_the_rows_that_serve_it(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, block_pack(8, 64, wider=(8, 64)), library)
    assert [kernels.block_us(WAY, m) for m in (1, 8, 9, 64)] == [5.0] * 4
    # Of more tokens nothing was measured, and of another order neither.
    assert kernels.block_us(WAY, 65) is None
    assert kernels.block_us((WIDER, NORM, NORM), 8) is None
    assert kernels.block_us((NORM, RmsNorm(256)), 8) is None


def test_a_block_whose_rows_are_of_several_sizes_has_no_time(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, block_pack(4, 8, wider=(8,)), library)
    assert [kernels.block_us(WAY, m) for m in (4, 5, 8)] == [None, 5.0, 5.0]


def test_stale_rows_take_the_times_of_their_blocks_with_them(tmp_path: Path, library: FakeCuda) -> None:
    assert opened(tmp_path, block_pack(8), library, hashes={"rms_norm": "1" * 16}).block_us(WAY, 8) is None


def test_a_blocks_time_is_from_the_pack_that_serves_all_of_it(tmp_path: Path, library: FakeCuda) -> None:
    behind = opened(tmp_path / "b", block_pack(8), library)
    empty = opened(tmp_path / "c", block_pack(8), library, hashes={"rms_norm": "1" * 16}, behind=behind)
    assert empty.block_us(WAY, 8) == 5.0
    # One that serves a part of it makes it another block, whatever was measured behind.
    part = opened(tmp_path / "a", pack(row(8, tiles(FILE))), library, behind=behind)
    assert part.block_us(WAY, 8) is None
    whole = opened(tmp_path / "d", block_pack(8, block_us=4.0), library, behind=behind)
    assert whole.block_us(WAY, 8) == 4.0


def test_whom_the_user_asks_for_makes_the_times_of_blocks_unknown(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, block_pack(8), library)
    assert Resolver(CPU, pack=kernels).block_us(WAY, 8) == 5.0
    assert Resolver(CPU, {"linear": "reference"}, pack=kernels).block_us(WAY, 8) == 5.0
    assert Resolver(CPU, {"rms_norm": "reference"}, pack=kernels).block_us(WAY, 8) is None
    assert Resolver(CPU).block_us(WAY, 8) is None


def test_the_resolver_takes_the_pack_unless_it_is_told_otherwise(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, pack(row(8, tiles(FILE))), library)
    assert Resolver(CPU, pack=kernels).served_by(NORM) == ("helion",)
    assert Resolver(CPU, {"rms_norm": "reference"}, pack=kernels).served_by(NORM) == ("reference",)
    resolver = Resolver(CPU, pack=kernels)
    x, weight = inputs(4)
    resolver.bind(NORM, weight)(x)
    assert library.launched[-1].grid == (4, 1, 1)
    assert resolver.chosen == {"rms_norm": {"helion"}}
    assert not resolver.compiles


def test_a_contract_that_a_pack_lacks_is_served_as_without_one_and_that_is_said(
    tmp_path: Path, library: FakeCuda
) -> None:
    resolver = Resolver(CPU, pack=opened(tmp_path, pack(row(8, tiles(FILE))), library))
    wider = op("rms_norm").contract(128, dtype=torch.bfloat16)  # type: ignore[call-arg]
    assert resolver.served_by(wider) == ("torch",)
    assert resolver.all_notes() == [f"{wider.key()} is not in pack h100-sxm: torch serves it"]


def test_two_sizes_of_an_op_have_programs_of_their_own(tmp_path: Path, library: FakeCuda) -> None:
    """Static dimensions are compiled in: nothing but the row tells the two binaries apart."""
    wider = RmsNorm(128, dtype=torch.bfloat16)
    code = sample.CODE[::-1]
    other_binary = binary(code=code, file="wider.cubin")
    wide_row = sample.row(8, wider.key(), best=tiles("wider.cubin"), runners_up=())
    content = pack(row(8, tiles(FILE)), wide_row, binaries=(binary(), other_binary))
    kernels = opened(tmp_path, content, library, {FILE: sample.CODE, "wider.cubin": code})
    for contract in (NORM, wider):
        launch = kernels.launcher(contract, op("rms_norm").provider("reference"))
        assert launch is not None
        assert launch.providers == ("helion",)
        launch(*contract.sample_inputs(3, CPU, torch.Generator()))
    assert (kernels.num_loaded, len(library.launched)) == (2, 2)


def test_dimensions_that_no_program_depends_on_do_not_count() -> None:
    tables = [FusedQkNormRope(4, 2, 64, 1e-6, 16, max_position) for max_position in (128, 4096)]
    keys = {program_key(FusedQkNormRope, contract.key()) for contract in tables}
    assert len(keys) == 1
    assert "max_position" not in keys.pop()
    other = FusedQkNormRope(4, 2, 64, 1e-6, 32, 128)
    assert program_key(FusedQkNormRope, other.key()) not in keys
    assert program_key(RmsNorm, NORM.key()) == NORM.key()


def test_a_row_that_nobody_measured_serves_only_whom_would_serve_anyway(tmp_path: Path, library: FakeCuda) -> None:
    kernels = opened(tmp_path, pack(row(8, tiles(FILE, time_us=0.0))), library)
    served = {name: kernels.launcher(NORM, op("rms_norm").provider(name)) for name in ("helion", "torch")}
    assert {name: launch.providers for name, launch in served.items() if launch} == {
        "helion": ("helion",),
        "torch": ("torch",),
    }
