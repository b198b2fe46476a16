"""The second program of ``fused_rope_attention``, in Gluon: for which steps it is, and what those who tune it see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parhelion.ops.decode_attention.launch import (
    TARGETS,
    build_inputs,
    candidates,
    default_config,
    launch,
    timed_inputs,
)
from parhelion.ops.fused_rope_attention import OP, FusedRopeAttention
from parhelion.ops.fused_rope_attention.launch import candidates as helion_candidates
from parhelion.ops.fused_rope_attention.launch import default_config as default_helion_config
from parhelion.ops.fused_rope_attention.launch import launch as launch_helion
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.inputs import empty_inputs
from parhelion.ops.pack_kernels import PackKernels
from parhelion.ops.packed_kinds import kind_of
from parhelion.ops.quantize import FP8
from parhelion.ops.tile_programs import all_candidates, folder_of, module_for, programs_module, provider_of
from parhelion.packs.format import Argument, BlockTime, Candidate, Recipe, Row
from parhelion.tuning.programs import plain
from tests.ops.packed_norm import opened
from tests.ops.test_decoder_block import Recorded
from tests.packs import sample
from tests.platform.fake_library import FakeCuda

SM_90 = gemm_target("sm_90")
NORMED = FusedRopeAttention(16, 8, 128, 16, 4096, 128**-0.5, 1e-6)
PLAIN = replace(NORMED, epsilon=None)
QUANTIZED = replace(NORMED, quant_dtype=FP8)
PROGRAM = "decode_attention.decode_attention"
HASHES = {"fused_rope_attention": "0" * 16, "fused_rope_attention.gluon": "1" * 16}


def step(contract: FusedRopeAttention, num_tokens: int, **of_batch: Any) -> tuple[Any, ...]:
    """Inputs of a step of single tokens, or of another one as its batch says."""
    *before, batch, table = empty_inputs(contract, num_tokens)[:6]
    return *before, replace(batch, **of_batch), table, *empty_inputs(contract, num_tokens)[6:]


def launched(contract: FusedRopeAttention, inputs: tuple[Any, ...], **of_config: Any) -> Recorded:
    run = Recorded()
    launch(contract, run, replace(default_config(contract, 16, SM_90), **of_config), *inputs)
    return run


def test_an_op_may_have_a_second_program_from_another_folder():
    assert [folder_of("fused_rope_attention", each) for each in ("helion", "gluon")] == [
        "fused_rope_attention",
        "decode_attention",
    ]
    assert folder_of("decoder_block", "gluon") == "decoder_block"
    assert OP.tile_programs == "helion"
    ours, helions = default_config(NORMED, 16, SM_90), default_helion_config(NORMED, 16, SM_90)
    assert [provider_of("fused_rope_attention", each) for each in (ours, helions)] == ["gluon", "helion"]
    assert [module_for("fused_rope_attention", each).launch for each in (ours, helions)] == [launch, launch_helion]
    both = all_candidates(NORMED, 16, SM_90)
    assert both == [*helion_candidates(NORMED, 16, SM_90), *candidates(NORMED, 16, SM_90)]


def test_there_are_candidates_for_single_tokens_where_the_program_is_built():
    for name in TARGETS:
        target = gemm_target(name)
        found = candidates(NORMED, 256, target)
        assert found[0] == default_config(NORMED, 256, target)
        assert 1 < len(found) == len(set(found))
        assert {each.programmatic for each in found} == {target.programmatic}
    assert candidates(NORMED, 512, SM_90) == []
    assert [candidates(NORMED, 16, gemm_target(name)) for name in ("gfx942", "gfx950")] == [[]] * 2


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 64},
        {"dtype": torch.float16},
        {"sliding_window": 512},
        {"soft_cap": 50.0},
        {"num_heads": 32, "num_kv_heads": 1},
        {"num_heads": 12},
        {"num_heads": 72},
        {"block_size": 8},
    ],
    ids=str,
)
def test_it_takes_some_dimensions_only_and_helions_program_the_others(changes: dict[str, Any]):
    other = replace(NORMED, **changes)
    assert candidates(other, 16, SM_90) == []
    if other.num_heads % other.num_kv_heads == 0:
        assert launched(other, step(other, 3)).calls[0][0] == "fused_rope_attention.rope_attention_decode"


@pytest.mark.parametrize("contract", [NORMED, PLAIN], ids=["head norms", "plain"])
@pytest.mark.parametrize(("programs", "splits"), [(1, 1), (256, 8)])
def test_single_tokens_are_its_own(contract: FusedRopeAttention, programs: int, splits: int):
    inputs = step(contract, 3)
    qkv, positions, slots, cache, batch, table, *weights = inputs
    run = launched(contract, inputs, programs=programs, gluon_warps=8, ring=2)
    kernel, config, arguments = run.calls[0]
    assert (kernel, config.num_warps) == (PROGRAM, 8)
    given = [qkv, positions, slots, cache, table, *(weights or [None, None]), batch.block_table, batch.seq_lens, None]
    assert all(ours is theirs for ours, theirs in zip(arguments, given, strict=False))
    parts, lse = arguments[len(given) : len(given) + 2]
    assert tuple(parts.shape) == (3, splits, 16, 128)
    assert (lse.dtype, tuple(lse.shape)) == (torch.float32, (3, splits, 16))
    assert parts.dtype == (torch.bfloat16 if splits == 1 else torch.float32)
    epsilon = 0.0 if contract is PLAIN else 1e-6
    assert arguments[len(given) + 2 :] == (epsilon, 128**-0.5, 16, 8, 128, 16, 8, splits > 1, 2, 8, True)
    # The parts are put together as those that Helion's program leaves.
    assert [each[0] for each in run.calls[1:]] == ["paged_attention.paged_attention_combine"] * (splits > 1)


@pytest.mark.parametrize(
    ("num_heads", "most", "columns"),
    [(8, 8, 8), (16, 2, 8), (16, 4, 8), (16, 8, 16), (32, 2, 8), (32, 4, 16), (64, 2, 16)],
)
@pytest.mark.parametrize(("num_tokens", "splits"), [(2, 16), (12, 2), (40, 1)])
def test_rows_of_one_sequence_are_its_own_too(num_heads: int, most: int, columns: int, num_tokens: int, splits: int):
    contract = replace(NORMED, num_heads=num_heads)
    slots = torch.zeros(num_tokens, dtype=torch.int32)
    inputs = step(contract, num_tokens, max_query_len=num_tokens, max_siblings=most, row_slots=slots)
    # Whatever was tuned for as many rows without siblings.
    for of_config in ({}, {"programs": 512, "gluon_warps": 8, "ring": 6}):
        kernel, config, arguments = launched(contract, inputs, **of_config).calls[0]
        assert (kernel, config.num_warps) == (PROGRAM, 4)
        assert arguments[9] is slots
        parts, lse = arguments[10:12]
        assert tuple(parts.shape) == (num_tokens, splits, num_heads, 128)
        assert tuple(lse.shape) == (num_tokens, splits, num_heads)
        assert arguments[12:] == (1e-6, 128**-0.5, num_heads, 8, 128, 16, columns, splits > 1, 2, 4, True)


def test_its_output_is_quantized_as_that_of_helions_program():
    for programs in (1, 256):
        run = Recorded()
        usual = replace(default_helion_config(QUANTIZED, 16, SM_90), programs=programs)
        launch_helion(QUANTIZED, run, usual, *step(QUANTIZED, 3))
        (_, after) = [each[0] for each in run.calls]
        ours = launched(QUANTIZED, step(QUANTIZED, 3), programs=programs).calls
        assert [each[0] for each in ours] == [PROGRAM, after]


@pytest.mark.parametrize(
    ("num_heads", "of_batch"),
    [
        (16, {"max_query_len": 16, "seq_lens": torch.empty(2, dtype=torch.int32)}),
        (16, {"max_query_len": 16}),
        (32, {"max_query_len": 16, "max_siblings": 8, "row_slots": torch.empty(12, dtype=torch.int32)}),
        (8, {"max_query_len": 16, "max_siblings": 16, "row_slots": torch.empty(12, dtype=torch.int32)}),
    ],
    ids=["prompts", "prompts and single tokens", "siblings with many heads", "many siblings"],
)
def test_every_other_step_is_helions(num_heads: int, of_batch: dict[str, Any]):
    contract = replace(NORMED, num_heads=num_heads)
    inputs = step(contract, 12, **of_batch)
    run = Recorded()
    launch_helion(contract, run, default_config(contract, 16, SM_90), *inputs)
    ours = launched(contract, inputs).calls
    assert [each[:2] for each in ours] == [each[:2] for each in run.calls]
    assert PROGRAM not in [each[0] for each in ours]


def test_it_says_what_it_is_not_for():
    with pytest.raises(ValueError, match=r"sm_90, .*, and gfx942 is another target"):
        launch(NORMED, Recorded("gfx942"), default_config(NORMED, 16, SM_90), *step(NORMED, 3))


def test_it_is_built_for_integers_at_any_address():
    for inputs in (*build_inputs(NORMED, 4), *build_inputs(NORMED, 16), *timed_inputs(NORMED, 16)):
        _, positions, slots, cache, batch, *_ = inputs
        integers = [positions, slots, batch.block_table, batch.seq_lens]
        integers += [] if batch.row_slots is None else [batch.row_slots]
        assert all(each.data_ptr() % 16 != 0 for each in integers)
        assert cache.data_ptr() % 16 == 0


def test_it_is_built_for_siblings_from_two_rows_on():
    for bucket in (1, 2, 8, 16):
        found = {inputs[4].max_siblings for inputs in build_inputs(NORMED, bucket)}
        assert found == ({1} if bucket == 1 else {1, 2, 4, 8})


def served(folder: Path, here: dict[str, str]) -> tuple[PackKernels, FakeCuda]:
    """A pack with a row of both programs, the Gluon one quicker, opened where sources have these hashes."""
    inputs, binaries, candidates = step(NORMED, 3), [], []
    for provider in ("gluon", "helion"):
        module = programs_module("fused_rope_attention", provider)
        config, run = replace(module.default_config(NORMED, 16, SM_90), programs=1), Recorded()
        module.launch(NORMED, run, config, *inputs)
        ((kernel, of_kernel, arguments),) = run.calls
        names = tuple(f"p{number}" for number in range(len(arguments)))
        recipe = Recipe(names, ("p0.size(0)",), tuple(Argument(each, "*") for each in names[:4]))
        file, kinds = f"{provider}.cubin", tuple(map(kind_of, arguments))
        own = sample.binary(
            kernel=kernel, config=plain(of_kernel), kinds=kinds, recipe=recipe, symbol=provider, file=file
        )
        binaries.append(own)
        candidates.append(Candidate(provider, plain(config), 9.0, 9.0, 9.0, (file,)))
    row = Row("fused_rope_attention", NORMED.key(), 16, candidates[0], tuple(candidates[1:]), measured_at=16)
    content = sample.pack(
        rows=(row,),
        binaries=tuple(binaries),
        source_hashes=HASHES,
        models=(),
        blocks=(BlockTime((NORMED.key(),), 16, 8.0),),
    )
    library = FakeCuda()
    files = {each.file: sample.CODE for each in binaries}
    return opened(folder, content, library, files, hashes=here), library


def test_a_pack_serves_it_or_where_its_sources_have_changed_helions(tmp_path: Path):
    stale = HASHES | {"fused_rope_attention.gluon": "2" * 16}
    for number, (here, provider, block_us) in enumerate(((HASHES, "gluon", 8.0), (stale, "helion", None))):
        kernels, library = served(tmp_path / str(number), here)
        found = kernels.launcher(NORMED, OP.provider("reference"))
        assert found is not None
        assert found.providers == (provider,)
        inputs = step(NORMED, 5)
        found(*inputs)
        (launched_one,) = library.launched
        assert launched_one.grid == (5, 1, 1)
        given = [int.from_bytes(each, "little") for each in launched_one.parameters[:3]]
        # Helion's has two views of the first input.
        first = inputs[:3] if provider == "gluon" else (inputs[0], *inputs[:2])
        assert given == [each.data_ptr() for each in first]
        assert kernels.block_us((NORMED,), 16) == block_us
        assert [note.partition(":")[0] for note in kernels.notes] == ["fused_rope_attention.gluon"] * (here is stale)
