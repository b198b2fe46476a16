"""Programs serve any M of their bucket: their recipes, guards and binaries."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import triton

from parhelion.ops.contract import Contract
from parhelion.ops.fused_rope_attention import FusedRopeAttention
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.helion_provider import tile_program
from parhelion.ops.inputs import empty_inputs
from parhelion.ops.launching import BUCKETS, bucket_of, build_sizes, launch_module
from parhelion.ops.packed_kinds import kind_of
from parhelion.ops.paged_attention.batch import AttentionBatch
from parhelion.ops.registry import op, op_names
from parhelion.ops.step_inputs import StepInputs
from parhelion.packs.format import Binary
from parhelion.tuning.build_rows import untuned_config
from parhelion.tuning.cross_compile import BuildError
from parhelion.tuning.programs import Program, distinct, plain, programs_of
from parhelion.tuning.record import GeneratedCode
from parhelion.tuning.target import target
from parhelion.tuning.timed_config import Timed, timed_request
from tests.tuning.watched_code import WatchedCode, check, evaluated, watched_code

SM_90 = target("sm_90")
FUSED_ATTENTION = FusedRopeAttention(9, 3, 64, 16, 2048, 0.125)
ATTENTION = FUSED_ATTENTION.attention
"""Nothing about it is a power of two, so that sizes that follow M are seldom multiples of 16."""

GENERATED = [name for name in op_names() if op(name).tile_programs == "helion"]
"""Ops whose programs Helion generates; the others are in ``test_gluon.py``."""


@pytest.fixture(autouse=True, scope="module")
def _as_in_a_worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton.knobs.cache, "dir", str(tmp_path_factory.mktemp("triton")))
        patch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
        patch.setenv("TRITON_DISABLE_LINE_INFO", "1")
        yield


@pytest.fixture(scope="module")
def code() -> Iterator[WatchedCode]:
    """Generated code of all tests here: what one has built serves the others, as far as they ask for the same."""
    with watched_code() as watched:
        yield watched


class Finder:
    """A runner that finds the binary of every launch, and checks that it may be launched so."""

    def __init__(self, programs: list[Program], name: str) -> None:
        self.target = name
        self.launched: list[Binary] = []
        self._programs = programs

    def __call__(self, kernel: str, config: Any, *arguments: Any) -> None:
        kinds = tuple(map(kind_of, arguments))
        found = [
            program.binary
            for program in self._programs
            if (program.binary.kernel, program.binary.config, program.binary.kinds) == (kernel, plain(config), kinds)
        ]
        assert len(found) == 1, (kernel, kinds, len(found))
        self.launched += found
        check_guards(found[0], arguments)


def check_guards(binary: Binary, arguments: tuple[Any, ...]) -> None:
    names = dict(zip(binary.recipe.parameters, arguments, strict=True))
    for expression, value in binary.recipe.equal:
        assert evaluated(expression, names) == value, (binary.kernel, expression)
    for expression in binary.recipe.aligned:
        value = evaluated(expression, names)
        assert (value.data_ptr() if isinstance(value, torch.Tensor) else value) % 16 == 0, (binary.kernel, expression)
    assert all(evaluated(each, names) >= 1 for each in binary.recipe.grid)


def config_of(contract: Contract, bucket: int, to: str = "sm_90") -> Any:
    """The untuned one. In the fused attention's, what the other attention's has as well is that one's: programs that
    both launch are then built once.
    """
    config = untuned_config(contract, bucket, target(to))
    if not isinstance(contract, FusedRopeAttention):
        return config
    return replace(config, **vars(untuned_config(contract.attention, bucket, target(to))))


def built(contract: Contract, bucket: int, code: GeneratedCode, to: str = "sm_90") -> list[Program]:
    return programs_of(contract, bucket, config_of(contract, bucket, to), target(to), code)


def launched(programs: list[Program], contract: Contract, bucket: int, inputs: tuple[Any, ...]) -> list[Binary]:
    find = Finder(programs, "sm_90")
    launch_module(contract.name).launch(contract, find, config_of(contract, bucket), *inputs)
    return find.launched


def example(name: str) -> Contract:
    """One of an op's contracts. The two attentions launch the same programs, as far as they can."""
    of_attention: dict[str, Contract] = {each.name: each for each in (ATTENTION, FUSED_ATTENTION)}
    return of_attention.get(name) or op(name).examples[0]


@pytest.mark.parametrize("name", GENERATED)
def test_every_op_has_binaries_for_every_m_of_a_bucket(name: str, code: GeneratedCode):
    contract = example(name)
    # Of attention and of sampling a bucket has several large programs; those of a single token are tested below.
    buckets = [(1, (1,)), (32, (17, 24, 32))]
    if "attention" in name:
        buckets = [(64, (33, 64))]
    elif "sampling" in name:
        buckets = [(32, (17, 32))]
    for bucket, sizes in buckets:
        programs = built(contract, bucket, code)
        for num_tokens in sizes:
            assert launched(programs, contract, bucket, empty_inputs(contract, num_tokens))
        for program in programs:
            binary = program.binary
            assert program.data.startswith(b"\x7fELF")
            assert binary.symbol.encode() in program.data
            assert binary.sha256 == hashlib.sha256(program.data).hexdigest()
            assert binary.num_bytes == len(program.data)
            assert binary.file.endswith(".cubin")
            assert binary.registers > 0


@pytest.mark.parametrize("name", GENERATED)
def test_a_recipe_launches_what_the_host_function_does_at_another_size_of_m(name: str, code: WatchedCode):
    examples = op(name).examples
    # Large programs take long to generate: one of them.
    is_large = "attention" in name or "sampling" in name
    for contract in [example(name)] if is_large else (examples[0], examples[len(examples) // 2]):
        check(code, contract, config_of(contract, 32))


@pytest.mark.parametrize("max_model_len", [16, 100, 40960])
def test_a_steps_integers_may_lie_anywhere_and_its_tables_have_any_width(max_model_len: int, code: GeneratedCode):
    contract = StepInputs(16)
    tables = [torch.empty((9, width), dtype=torch.int32) for width in (max_model_len + 2, -(-max_model_len // 16))]
    for bucket, sizes in ((1, (1,)), (2, (2,)), (16, (9, 16))):
        programs = built(contract, bucket, code)
        for num_rows in sizes:
            for first in (0, 1, 4):
                buffer = torch.empty(first + 4 * num_rows, dtype=torch.int32)
                fields = buffer[first:].split(num_rows)
                assert len(launched(programs, contract, bucket, (*fields, *tables))) == 1


@pytest.mark.parametrize(("name", "bucket"), [("paged_attention", 1), ("fused_rope_attention", 64)])
def test_what_is_built_to_be_timed_is_what_a_measured_step_launches(name: str, bucket: int, code: GeneratedCode):
    contract, to = example(name), target("sm_90")
    config = config_of(contract, bucket)
    to_serve = programs_of(contract, bucket, config, to, code)
    to_time = programs_of(contract, bucket, Timed(config), to, code)
    kinds, all_kinds = ({(each.binary.kernel, each.binary.kinds) for each in found} for found in (to_time, to_serve))
    assert kinds < all_kinds if bucket > 1 else kinds == all_kinds
    find = Finder(to_time, "sm_90")
    launch_module(name).launch(contract, find, config, *empty_inputs(contract, bucket))
    assert find.launched


@pytest.mark.parametrize("programs", [1, 1024])
@pytest.mark.parametrize("name", ["paged_attention", "fused_rope_attention"])
def test_what_is_built_to_be_timed_serves_every_step_of_single_tokens(name: str, programs: int, code: GeneratedCode):
    contract, module = example(name), launch_module(name)
    config = replace(config_of(contract, 64), programs=programs)
    requests = set()
    for num_tokens in (1, 2, 5, 16, 31, 64, 256):
        request = timed_request(contract, bucket_of(num_tokens), config)
        assert request is not None
        requests.add(request)
        find = Finder(programs_of(*request, target("sm_90"), code), "sm_90")
        module.launch(contract, find, config, *empty_inputs(contract, num_tokens))
        assert find.launched
    assert len(requests) == 1


def test_sizes_to_build_for_are_of_the_bucket_and_one_is_odd():
    for bucket in BUCKETS:
        sizes = build_sizes(bucket)
        assert 1 not in sizes
        assert any(size % 2 for size in sizes)
        # Nothing distinguishes one token or two from three; from there on the bucket decides.
        assert bucket <= 2 or {bucket_of(size) for size in sizes} == {bucket}


def test_the_static_dimensions_stand_in_the_recipe(code: GeneratedCode):
    contract = op("linear").examples[0]
    gemm = built(contract, 32, code)[0].binary
    assert {contract.in_features, contract.out_features} <= {value for _, value in gemm.recipe.equal}


@pytest.mark.parametrize("to", ["sm_90", "gfx942"])
def test_the_same_is_built_twice_and_holds_no_paths(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    contract = op("silu_and_mul").examples[0]
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "once"))
    once = built(contract, 32, GeneratedCode(), to)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "again"))
    again = built(contract, 32, GeneratedCode(), to)
    assert [program.data for program in once] == [program.data for program in again]
    assert [program.binary.file for program in once] == [program.binary.file for program in again]
    for program in once:
        assert program.binary.file.endswith(".hsaco" if to == "gfx942" else ".cubin")
        for path in (b"parhelion-build", b"generated_", b"/tmp", str(Path.home()).encode()):
            assert path not in program.data


def step(num_tokens: int, num_rows: int, max_query_len: int, max_seq_len: int) -> tuple[Any, ...]:
    """As the engine's: lengths and offsets are views of one buffer, the block table is as wide as the longest row."""
    buffer = torch.empty(4 * num_rows + num_tokens + 8, dtype=torch.int32)
    batch = AttentionBatch(
        torch.empty((num_rows, -(-max_seq_len // ATTENTION.block_size)), dtype=torch.int32),
        buffer[num_rows : 2 * num_rows],
        buffer[2 * num_rows : 3 * num_rows + 1],
        max_query_len,
        max_seq_len,
    )
    query = torch.empty((num_tokens, ATTENTION.num_heads * ATTENTION.head_dim), dtype=torch.bfloat16)
    kv_cache = torch.empty((77, ATTENTION.block_size, 2 * ATTENTION.num_kv_heads, 64), dtype=torch.bfloat16)
    return query, kv_cache, batch


@pytest.mark.parametrize(("bucket", "num_tokens"), [(1, 1), (64, 40), (4096, 4096)])
def test_attention_has_binaries_for_every_step_of_the_engines(bucket: int, num_tokens: int, code: GeneratedCode):
    programs = built(ATTENTION, bucket, code)
    found = set()
    for max_seq_len in (14, 30, 62, 126, 2046, 40958):
        decodes = step(num_tokens, num_tokens, 1, max_seq_len)
        found |= {binary.file for binary in launched(programs, ATTENTION, bucket, decodes)}
        # Rows are padded apart from tokens: there may be more of them.
        for num_rows in (1, 4, 16, 64, 256):
            if num_tokens > 1 and num_rows != num_tokens:
                mixed = step(num_tokens, num_rows, num_tokens, max_seq_len)
                found |= {binary.file for binary in launched(programs, ATTENTION, bucket, mixed)}
    assert len(found) >= (3 if bucket == 1 else 8 if bucket <= 64 else 6)


def test_a_buckets_programs_are_another_buckets_where_the_config_is_the_same(code: GeneratedCode):
    config = untuned_config(ATTENTION, 1, SM_90)
    few, many = ({each.binary.file for each in programs_of(ATTENTION, b, config, SM_90, code)} for b in (1, 64))
    assert few < many


def test_one_sampled_row_comes_as_views_of_a_table(code: GeneratedCode):
    contract = op("top_k_top_p_sampling").examples[0]
    table = torch.empty((1, 3))
    top_k = torch.empty((1, 6), dtype=torch.int32)[:, 3].contiguous()
    parameters = (table[:, 0].contiguous(), top_k, table[:, 1].contiguous(), table[:, 2].contiguous(), torch.empty(1))
    logits = torch.empty((1, contract.vocab_size))
    assert launched(built(contract, 1, code), contract, 1, (logits, *parameters))


def test_persistent_programs_need_the_number_of_processors(code: GeneratedCode):
    contract = op("linear").examples[0]
    config = GemmConfig(16, 32, 32, pid_type="persistent_blocked")
    with pytest.raises(BuildError, match=r"gemm.gemm: pid_type persistent_blocked is built for a number of processors"):
        programs_of(contract, 32, config, SM_90, code)
    binary = programs_of(contract, 32, config, SM_90, GeneratedCode(num_processors=132))[0].binary
    assert ("num_processors", 132) in binary.recipe.equal
    assert binary.recipe.grid == ("num_processors",)


def test_programmatic_programs_are_launched_so(code: GeneratedCode):
    contract = op("silu_and_mul").examples[0]
    usual = untuned_config(contract, 32, SM_90)
    assert [each.binary.programmatic for each in programs_of(contract, 32, usual, SM_90, code)] == [False]
    config = replace(usual, programmatic=True)
    assert [each.binary.programmatic for each in programs_of(contract, 32, config, SM_90, code)] == [True]
    for program in ("paged_attention_decode", "paged_attention_combine", "paged_attention_varlen"):
        assert "programmatic" in tile_program(f"paged_attention.{program}").signature.parameters


def test_what_cannot_be_built_is_named(code: GeneratedCode):
    contract = op("dynamic_per_token_scaled_fp8_quant").examples[0]
    with pytest.raises(BuildError, match=r"dynamic_per_token_scaled_quant: .*fp8e4nv not supported"):
        built(contract, 32, code, "sm_80")


def test_programs_of_several_buckets_are_listed_once_with_the_longest_time(code: GeneratedCode):
    contract = op("silu_and_mul").examples[0]
    first, again = built(contract, 32, code), built(contract, 64, code)
    binaries, files = distinct([*again, *first])
    assert len(binaries) == len(files) == len(first)
    assert binaries[0].compile_s == max(first[0].binary.compile_s, again[0].binary.compile_s)
