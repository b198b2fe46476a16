"""Packs built without a GPU: from models, from other packs, and where something cannot be built."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from parhelion.errors import PackError
from parhelion.ops.decode_attention.launch import default_config
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.launching import BUCKETS
from parhelion.ops.registry import ops
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.ops.source_hash import source_hashes
from parhelion.packs.format import Argument, Binary, Candidate, ModelEntry, Pack, Recipe, Row
from parhelion.packs.store import read_pack, write_pack
from parhelion.packs.verify import verify
from parhelion.tuning.build_pack import BuiltPack, build_pack, untuned_pack
from parhelion.tuning.build_rows import untuned_config
from parhelion.tuning.compile_pool import CompilePool
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.jobs import Request, no_more
from parhelion.tuning.programs import Program, plain
from parhelion.tuning.target import target

SM_90, GFX942 = target("sm_90"), target("gfx942")
NORM, SILU = RmsNorm(256), SiluAndMul(512)
MODELS = (ModelEntry("tiny", "unquantized", (NORM.key(), SILU.key())),)
RECIPE = Recipe(("x",), ("x.size(0)",), (Argument("x", "*"),))


class FakeCompiler:
    """Makes a program of each config in no time, but for those that it is told to refuse."""

    def __init__(self, refused: Sequence[object] = ()) -> None:
        self.asked: list[Request] = []
        self._refused = refused

    def compile(
        self, requests: Sequence[Request], more: Callable[[], Sequence[Request]] = no_more
    ) -> Iterator[tuple[int, tuple[Program, ...] | str, float]]:
        self.asked += requests
        for index, (contract, _, config) in reversed(list(enumerate(requests))):
            programs = (fake_program(contract.name, plain(config)),)
            yield index, "too large" if config in self._refused else programs, 0.5


def fake_program(op: str, config: dict[str, object]) -> Program:
    data = f"{op}{config}".encode()
    sha256 = hashlib.sha256(data).hexdigest()
    file = f"{sha256[:16]}.cubin"
    kinds = ("bfloat16[2]",)
    return Program(Binary(f"{op}.{op}", config, kinds, op, file, sha256, len(data), 4, 0, 32, 0, RECIPE), data)


def build(source: Pack, compiler: FakeCompiler, to: str = "sm_90") -> BuiltPack:
    return build_pack(source, target(to), compiler, name="new", command="parhelion build tiny")


def untuned() -> Pack:
    return untuned_pack("tiny", (NORM, SILU), MODELS, SM_90)


def measured(compiler: FakeCompiler, *runners_up: Candidate, best: Candidate | None = None) -> Pack:
    """A pack with a single row that was tuned."""
    pack = build(untuned(), compiler).pack
    first = pack.rows[0]
    best = best or msgspec.structs.replace(first.best, time_us=3.0, time_us_p10=2.9, time_us_p90=3.1)
    row = msgspec.structs.replace(first, best=best, runners_up=runners_up, floor_us=2.0, chosen_by="row")
    fingerprint = msgspec.structs.replace(pack.fingerprint, device="NVIDIA H100 80GB HBM3", num_processors=132)
    return msgspec.structs.replace(pack, rows=(row,), fingerprint=fingerprint, versions={"triton": "3.1"})


def test_a_model_gets_a_row_for_every_contract_and_bucket_and_each_program_once(tmp_path: Path):
    compiler = FakeCompiler()
    built = build(untuned(), compiler)
    pack = built.pack
    assert [(row.contract, row.num_tokens) for row in pack.rows] == [
        (contract.key(), bucket) for contract in (NORM, SILU) for bucket in BUCKETS
    ]
    files = {binary.file for binary in pack.binaries}
    for row in pack.rows:
        assert row.best.provider == "helion"
        assert row.best.time_us == 0.0
        assert row.chosen_by == "untuned"
        assert set(row.best.binaries) <= files
        assert row.best.binaries
    assert len(compiler.asked) == len(set(compiler.asked)) == 2 * len(BUCKETS)
    assert len(files) == len(built.binaries) < len(compiler.asked)
    assert pack.ledger.build_s == 0.5 * len(compiler.asked)
    assert set(pack.source_hashes) == {"rms_norm", "silu_and_mul"}
    assert pack.fingerprint.target == "sm_90"
    assert pack.fingerprint.device == ""
    assert {"build.triton", "build.helion", "build.torch", "build.parhelion"} == set(pack.versions)
    write_pack(pack, built.binaries, tmp_path / "tiny.zip")
    assert verify(read_pack(tmp_path / "tiny.zip"), pack.source_hashes) == []


def test_what_cannot_be_built_is_left_out_and_told():
    refused = untuned_config(SILU, 1, SM_90)
    built = build(untuned(), FakeCompiler([refused]))
    assert {row.op for row in built.pack.rows} == {"rms_norm"}
    assert {failure.contract for failure in built.failures} == {SILU.key()}
    assert {failure.reason for failure in built.failures} == {"too large"}
    assert {failure.instead for failure in built.failures} == {SILU.instead}
    assert len(built.failures) == len(BUCKETS)


def test_measurements_are_kept_for_the_same_target_and_sources():
    source = measured(FakeCompiler(), Candidate("torch", None, 5.0, 4.9, 5.1))
    built = build(source, FakeCompiler())
    assert built.pack.rows == source.rows
    assert built.pack.fingerprint == source.fingerprint
    assert built.pack.versions["triton"] == "3.1"
    stale = msgspec.structs.replace(source, source_hashes={"rms_norm": "other"})
    (row,) = build(stale, FakeCompiler()).pack.rows
    assert (row.best.time_us, row.floor_us, row.runners_up, row.chosen_by) == (0.0, 0.0, (), "seed")


def test_of_an_op_with_two_programs_one_that_is_stale_is_left_out():
    attention = FusedRopeAttention(16, 8, 128, 16, 4096, 128**-0.5, 1e-6)
    gluon, helion = (
        Candidate(provider, plain(config), 3.0, 2.9, 3.1, ("old.cubin",))
        for provider, config in (
            ("gluon", default_config(attention, 16, gemm_target("sm_90"))),
            ("helion", untuned_config(attention, 16, SM_90)),
        )
    )
    row = Row("fused_rope_attention", attention.key(), 16, gluon, (helion,))
    source = measured(FakeCompiler())
    current = source_hashes(["fused_rope_attention"])
    source = msgspec.structs.replace(source, rows=(row,), source_hashes=current)
    (found,) = build(source, FakeCompiler()).pack.rows
    assert [each.provider for each in (found.best, *found.runners_up)] == ["gluon", "helion"]
    assert found.best.binaries != found.runners_up[0].binaries
    stale = msgspec.structs.replace(source, source_hashes=current | {"fused_rope_attention.gluon": "other"})
    built = build(stale, FakeCompiler()).pack
    (found,) = built.rows
    assert (found.best.provider, found.best.time_us, found.runners_up) == ("helion", 3.0, ())
    assert set(built.source_hashes) == {"fused_rope_attention"}


def test_another_target_keeps_configs_and_no_measurements():
    source = measured(FakeCompiler(), Candidate("torch", None, 5.0, 4.9, 5.1))
    pack = build(source, FakeCompiler(), "gfx942").pack
    (row,) = pack.rows
    assert row.best.config == source.rows[0].best.config
    assert (row.best.time_us, row.floor_us, row.runners_up, row.chosen_by) == (0.0, 0.0, (), "seed")
    assert (pack.fingerprint.vendor, pack.fingerprint.target, pack.fingerprint.device) == ("amd", "gfx942", "")
    assert "triton" not in pack.versions
    assert pack.ledger.tune_s == 0.0


def test_the_next_candidate_and_then_the_untuned_config_serve_where_the_best_is_not_built():
    usual = untuned_config(NORM, 1, SM_90)
    other = type(usual)(block_sizes=(2,), num_warps=2)
    best = Candidate("helion", plain(other), 3.0, 2.9, 3.1)
    torch = Candidate("torch", None, 5.0, 4.9, 5.1)
    compiled = Candidate("inductor", None, 4.0, 3.9, 4.1)
    built = build(measured(FakeCompiler(), compiled, torch, best=best), FakeCompiler([other]))
    (row,) = built.pack.rows
    assert row.best == torch
    assert row.runners_up == (compiled,)
    assert [failure.instead for failure in built.failures] == ["torch"]
    built = build(measured(FakeCompiler(), compiled, torch, best=best), FakeCompiler([other]), "gfx942")
    (row,) = built.pack.rows
    assert row.best.config == plain(untuned_config(NORM, 1, GFX942))
    assert row.chosen_by == "untuned"
    assert [failure.instead for failure in built.failures] == ["helion with another config"]


def test_another_providers_row_needs_no_binaries():
    torch = Candidate("torch", None, 2.0, 1.9, 2.1)
    slower = Candidate("helion", plain(untuned_config(NORM, 1, SM_90)), 3.0, 2.9, 3.1)
    compiler = FakeCompiler()
    built = build(measured(FakeCompiler(), slower, best=torch), compiler)
    assert compiler.asked == []
    assert built.pack.rows[0].best == torch
    assert built.pack.rows[0].runners_up == (slower,)
    assert built.binaries == {}


def test_a_config_of_another_kind_is_refused():
    strange = Candidate("helion", {"block_sizes": "large"}, 3.0, 2.9, 3.1)
    with pytest.raises(PackError, match="none of rms_norm's"):
        build(measured(FakeCompiler(), best=strange), FakeCompiler())


def test_keys_are_read_back():
    for each in ops():
        for contract in each.examples:
            assert contract_of_key(contract.key()) == contract


@pytest.mark.parametrize(
    "key",
    ["nothing(x=1)", "rms_norm(hidden_size=256)", "rms_norm", "rms_norm(width=3)", "1 +", "rms_norm(hidden_size=f())"],
)
def test_a_key_that_means_nothing_here_is_refused(key: str):
    with pytest.raises(PackError, match=r"is not known here|here; tune its rows again"):
        contract_of_key(key)


def test_a_pool_builds_on_all_processes_and_again():
    with CompilePool(SM_90, jobs=2) as pool:
        requests = [
            (contract, bucket, untuned_config(contract, bucket, SM_90))
            for contract in (NORM, SILU)
            for bucket in (1, 64)
        ]
        results = list(pool.compile(requests))
        assert sum(seconds for _, _, seconds in results) > 0
        found = {index: built for index, built, _ in results}
        assert sorted(found) == [0, 1, 2, 3]
        assert all(not isinstance(built, str) for built in found.values())
        other = type(requests[0][2])(block_sizes=(2,), num_warps=2)
        again = {index: built for index, built, _ in pool.compile([(NORM, 64, other), *requests[:1]])}
        assert [program.data for program in again[1]] == [program.data for program in found[0]]
        assert not isinstance(again[0], str)
        # Whoever stops reading stops what is going on, and may ask again.
        next(pool.compile(requests))
        assert len(list(pool.compile(requests[:1]))) == 1


def test_a_request_that_takes_too_long_is_a_reason():
    with CompilePool(SM_90, jobs=1, limit_s=0.0) as pool:
        ((index, reason, _),) = pool.compile([(NORM, 1, untuned_config(NORM, 1, SM_90))])
        assert (index, reason) == (0, "took longer than 0 s")
