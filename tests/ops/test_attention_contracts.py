"""Contracts, references and adapters of attention, rotation, embedding and sampling, without any tile program."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from parhelion.ops import registry
from parhelion.ops.argmax import Argmax
from parhelion.ops.check import check, compare
from parhelion.ops.contract import Contract, Tensors, as_tuple
from parhelion.ops.embedding import Embedding
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.gemm.target import gemm_target
from parhelion.ops.inputs import map_tensors, tensors_in
from parhelion.ops.paged_attention import AttentionBatch, PagedAttention
from parhelion.ops.paged_attention.providers import varlen_launcher
from parhelion.ops.paged_attention.sample import sample_rows
from parhelion.ops.paged_attention.tiling import MOST_SPLITS, PROGRAMS, num_splits, packed_tokens, untuned
from parhelion.ops.rope_and_cache import RopeAndCache
from parhelion.ops.top_k_top_p_sampling import TopKTopPSampling

CPU = torch.device("cpu")
CUDA = torch.device("cuda")

ROPE = RopeAndCache(3, 1, 64, 16, 128)
NORM_ROPE = FusedQkNormRope(4, 2, 64, 1e-5, 16, 128)
ATTENTION = PagedAttention(4, 2, 64, 16, 0.125)
CONTRACTS: tuple[Contract, ...] = (
    ROPE, NORM_ROPE, ATTENTION, Embedding(50, 64), Argmax(300), TopKTopPSampling(300)
)  # fmt: skip


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def inputs_of(contract: Contract, num_tokens: int) -> Tensors:
    return contract.sample_inputs(num_tokens, CPU, generator())


def in_float64(inputs: Tensors) -> Tensors:
    return map_tensors(inputs, lambda x: x.double() if x.is_floating_point() else x)


@pytest.mark.parametrize("contract", CONTRACTS, ids=str)
def test_references_write_to_no_input(contract: Contract):
    inputs = inputs_of(contract, 5)
    before = [tensor.clone() for tensor in tensors_in(inputs)]
    contract.reference(*inputs)
    assert all(torch.equal(a, b) for a, b in zip(tensors_in(inputs), before, strict=True))


@pytest.mark.parametrize("contract", CONTRACTS, ids=str)
def test_references_agree_with_themselves_in_float64(contract: Contract):
    """Within the contract's own bounds, which leave room for one rounding of the output."""
    inputs = inputs_of(contract, 5)
    got, want = as_tuple(contract.reference(*inputs)), as_tuple(contract.reference(*in_float64(inputs)))
    for error in compare(contract, tuple(x.to(y.dtype) for x, y in zip(got, want, strict=True)), want):
        assert error.problem is None, error


def turned(heads: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """Rotation as a product of complex numbers: another formula than the reference's."""
    half = heads.shape[-1] // 2
    table = cos_sin.double()[positions][:, None]
    numbers = torch.complex(heads[..., :half], heads[..., half:]) * torch.complex(table[..., :half], table[..., half:])
    return torch.cat((numbers.real, numbers.imag), -1)


@pytest.mark.parametrize("contract", [ROPE, NORM_ROPE], ids=str)
def test_rotation_is_a_product_of_complex_numbers(contract: RopeAndCache | FusedQkNormRope):
    inputs = in_float64(inputs_of(contract, 7))
    qkv, positions, slots, kv_cache, cos_sin, *weights = inputs
    slots[2] = -1
    c = contract
    heads = qkv.view(7, -1, c.head_dim).clone()
    for begin, end, number in ((0, c.num_heads, 0), (c.num_heads, c.num_heads + c.num_kv_heads, 1)):
        part = heads[:, begin:end]
        if isinstance(c, FusedQkNormRope):
            length = (part.square().sum(-1, keepdim=True) / c.head_dim + c.epsilon).sqrt()
            part = part / length * weights[number]
        heads[:, begin:end] = turned(part, positions, cos_sin)
    stored = kv_cache.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            stored[slot // c.block_size, slot % c.block_size] = heads[token, c.num_heads :]
    query, cache = contract.reference(*inputs)
    torch.testing.assert_close(query, heads[:, : c.num_heads].flatten(1))
    torch.testing.assert_close(cache, stored, rtol=0, atol=1e-12)


def test_angles_of_a_table_are_its_positions_times_its_frequencies():
    _, _, _, _, table = inputs_of(ROPE, 1)
    frequencies = 1e6 ** (-torch.arange(32, dtype=torch.float64) / 32)
    torch.testing.assert_close(table[9].double(), torch.cat(((9 * frequencies).cos(), (9 * frequencies).sin())))


def attended(c: PagedAttention, query: torch.Tensor, kv_cache: torch.Tensor, batch: AttentionBatch) -> torch.Tensor:
    """One head of one token at a time, in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64).view(-1, c.num_heads, c.head_dim)
    starts, lens = batch.query_start_loc.tolist(), batch.seq_lens.tolist()
    for row, seq_len in enumerate(lens):
        for token in range(starts[row], starts[row + 1]):
            position = seq_len - (starts[row + 1] - token)
            lowest = 0 if c.sliding_window is None else max(0, position + 1 - c.sliding_window)
            places = [(int(batch.block_table[row, p // c.block_size]), p % c.block_size)
                      for p in range(lowest, position + 1)]  # fmt: skip
            for head in range(c.num_heads if places else 0):
                keys = torch.stack([kv_cache[block, offset, head // c.group].double() for block, offset in places])
                values = torch.stack(
                    [kv_cache[block, offset, c.num_kv_heads + head // c.group].double() for block, offset in places]
                )
                scores = keys @ query.view(-1, c.num_heads, c.head_dim)[token, head].double() * c.scale
                if c.soft_cap is not None:
                    scores = c.soft_cap * (scores / c.soft_cap).tanh()
                out[token, head] = scores.softmax(0) @ values
    return out.flatten(1)


def rows_of(c: PagedAttention, query_lens: list[int], seq_lens: list[int]) -> Any:
    shape = (c.num_heads, c.num_kv_heads, c.head_dim, c.block_size)
    return sample_rows(query_lens, seq_lens, shape, c.dtype, CPU, generator())


@pytest.mark.parametrize(
    "contract",
    [ATTENTION, replace(ATTENTION, sliding_window=9), replace(ATTENTION, soft_cap=2.0, num_heads=6, block_size=32)],
    ids=str,
)
def test_attention_agrees_with_one_token_at_a_time(contract: PagedAttention):
    inputs = in_float64(rows_of(contract, [3, 1, 17, 0, 2], [3, 20, 33, 0, 0]))
    torch.testing.assert_close(contract.reference(*inputs), attended(contract, *inputs))


@pytest.mark.parametrize("contract", [c for c in CONTRACTS if c is not ATTENTION], ids=str)
def test_what_torch_has_agrees_with_the_reference(contract: Contract):
    launch = registry.op(contract.name).provider("torch").launcher(contract)
    for error in check(contract, launch, inputs_of(contract, 13)):
        assert error.problem is None, error


def test_traffic_counts_what_must_be_moved():
    # qkv of (3 + 2) * 64 bfloat16 read and written, to the queries and the cache; two int64 and 64 float32 read.
    assert ROPE.traffic(2).bytes == 2 * (2 * 320 + 2 * 320 + 16 + 256)
    assert NORM_ROPE.traffic(1).bytes == 2 * 512 + 2 * 512 + 16 + 256 + 2 * 64 * 2
    # One row of 576 - 32 tokens: the query and the output, and a key and a value for each of two heads.
    decode = ATTENTION.traffic(1)
    assert (decode.bytes, decode.flops) == (2 * (2 * 256 + 544 * 256), 4 * 544 * 256)
    # A prompt of 300 tokens: each sees itself and those before it. In a window of 100, at most 100.
    assert ATTENTION.traffic(300).flops == 4 * 256 * (300 * 301 // 2)
    assert replace(ATTENTION, sliding_window=100).traffic(300).flops == 4 * 256 * (100 * 101 // 2 + 200 * 100)
    assert Embedding(1000, 64).traffic(3).bytes == 3 * (8 + 2 * 128)
    assert Argmax(300).traffic(2).bytes == 2 * 1200 + 16
    assert TopKTopPSampling(300).traffic(1).bytes == 1200 + 20 + 8


def test_argmax_takes_the_first_of_equal_elements_and_nan_before_all():
    logits = torch.tensor([[1.0, 3.0, 3.0], [-torch.inf] * 3, [torch.inf, torch.nan, torch.nan]])
    assert Argmax(3).reference(logits).tolist() == [1, 0, 1]


def shares(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """The share of the numbers in [0, 1) at which each token is drawn."""
    n = 20000
    values = (torch.tensor([logits]).repeat(n, 1), torch.full((n,), temperature), torch.full((n,), top_k).int())
    drawn = TopKTopPSampling(len(logits)).reference(
        *values, torch.full((n,), top_p), torch.full((n,), min_p), (torch.arange(n) + 0.5) / n
    )
    return (torch.bincount(drawn, minlength=len(logits)) / n).tolist()


LOGITS = [float(torch.tensor(p).log()) for p in (0.1, 0.4, 0.2, 0.1, 0.2)]


@pytest.mark.parametrize(
    ("parameters", "kept"),
    [
        ((1.0, 0, 1.0, 0.0), [0.1, 0.4, 0.2, 0.1, 0.2]),
        ((1.0, 1, 1.0, 0.0), [0, 1, 0, 0, 0]),
        ((0.0, 0, 1.0, 0.0), [0, 1, 0, 0, 0]),
        # Of the two equal second ones both are kept, by top-k as by top-p.
        ((1.0, 2, 1.0, 0.0), [0, 0.5, 0.25, 0, 0.25]),
        ((1.0, 0, 0.5, 0.0), [0, 0.5, 0.25, 0, 0.25]),
        ((1.0, 0, 0.39, 0.0), [0, 1, 0, 0, 0]),
        # top-p is a share of what top-k left: 0.4 of 0.8 is 0.5.
        ((1.0, 3, 0.45, 0.0), [0, 1, 0, 0, 0]),
        ((1.0, 3, 0.55, 0.0), [0, 0.5, 0.25, 0, 0.25]),
        ((1.0, 0, 1.0, 0.49), [0, 0.5, 0.25, 0, 0.25]),
        ((1.0, 0, 1.0, 0.51), [0, 1, 0, 0, 0]),
        ((0.5, 4, 1.0, 0.0), [0.01 / 0.26, 0.16 / 0.26, 0.04 / 0.26, 0.01 / 0.26, 0.04 / 0.26]),
    ],
    ids=str,
)
def test_tokens_are_drawn_in_proportion_to_what_the_filters_leave(parameters: Any, kept: list[float]):
    assert shares(LOGITS, *parameters) == pytest.approx(kept, abs=1e-3)


def test_sampling_never_draws_a_hidden_token_at_the_ends_of_the_range():
    logits = torch.tensor([[-torch.inf, 1.0, -torch.inf, 2.0, -torch.inf]] * 2)
    ones, none = torch.ones(2), torch.zeros(2)
    numbers = torch.tensor([0.0, 1.0 - 2.0**-24])
    assert TopKTopPSampling(5).reference(logits, ones, none.int(), ones, none, numbers).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("num_rows", "max_seq_len", "splits"), [(1, 40960, 32), (16, 576, 2), (256, 576, 1), (1, 9, 1)]
)
def test_a_decode_step_is_split_until_there_are_programs_enough(num_rows: int, max_seq_len: int, splits: int):
    assert num_splits(PagedAttention(32, 8, 128, 16, 1.0), num_rows, max_seq_len, PROGRAMS) == splits <= MOST_SPLITS


def test_a_window_needs_no_more_splits_than_it_has_tokens():
    assert num_splits(PagedAttention(32, 8, 128, 16, 1.0, sliding_window=128), 1, 40960, PROGRAMS) == 8


@pytest.mark.parametrize(("max_query_len", "packed"), [(1, 16), (5, 32), (9, 64), (2048, 128)])
def test_a_varlen_tile_is_no_larger_than_what_a_row_can_have(max_query_len: int, packed: int):
    contract = PagedAttention(32, 8, 128, 16, 1.0)
    assert packed_tokens(contract, untuned(contract, gemm_target("sm_90")), max_query_len) == packed


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="num_heads = 9 is no multiple of num_kv_heads = 2"):
        PagedAttention(9, 2, 64, 16, 1.0)


@pytest.mark.parametrize("window", [None, 9])
def test_varlen_attention_is_given_the_rows_blocks_side_by_side(monkeypatch: pytest.MonkeyPatch, window: int | None):
    """With attention in plain torch in the place of ``varlen_attn``, which needs a GPU."""
    contract = replace(ATTENTION, sliding_window=window)

    def varlen_attn(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int, *,
        scale: float, window_size: tuple[int, int], enable_gqa: bool, seqused_k: Any,
    ) -> torch.Tensor:  # fmt: skip
        out = torch.zeros_like(query)
        for row, used in enumerate(seqused_k.tolist()):
            first, last, start = int(cu_seq_q[row]), int(cu_seq_q[row + 1]), int(cu_seq_k[row])
            position = torch.arange(used)[used - (last - first) :, None]
            seen = torch.arange(used) <= position
            if window_size[0] >= 0:
                seen &= torch.arange(used) >= position - window_size[0]
            q, k, v = (
                x.float().transpose(0, 1)
                for x in (query[first:last], key[start : start + used], value[start : start + used])
            )
            attended = torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=seen, scale=scale, enable_gqa=enable_gqa
            )
            out[first:last] = attended[0].transpose(0, 1)
        return out

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    inputs = rows_of(contract, [3, 1, 17], [3, 20, 33])
    for error in compare(contract, (varlen_launcher(contract)(*inputs),), (contract.reference(*inputs),)):
        assert error.problem is None, error


class Recorded(SimpleNamespace):
    """A package's functions that keep what they are called with."""

    def function(self, name: str, result: Any = None) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            self.calls.append((name, args, options))
            return result(*args, **options) if callable(result) else result

        return call


def fake(monkeypatch: pytest.MonkeyPatch, module: str, **results: Any) -> Recorded:
    recorded = Recorded(calls=[])
    made = ModuleType(module)
    for name, result in results.items():
        setattr(made, name, recorded.function(name, result))
    parent, _, _ = module.rpartition(".")
    if parent:
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, module, made)
    return recorded


def test_flash_attention_3_is_called_with_pages_and_lengths(monkeypatch: pytest.MonkeyPatch):
    recorded = fake(monkeypatch, "flash_attn_interface", flash_attn_with_kvcache=lambda q, k, v, **_: q)
    contract = replace(ATTENTION, sliding_window=9, soft_cap=30.0)
    query, kv_cache, batch = rows_of(contract, [2, 1], [20, 5])
    out = registry.op("paged_attention").provider("flash_attn").launcher(contract)(query, kv_cache, batch)
    ((_, (q, k, v), options),) = recorded.calls
    assert out.shape == query.shape
    assert q.shape == (3, 4, 64)
    assert torch.equal(k, kv_cache[:, :, :2])
    assert torch.equal(v, kv_cache[:, :, 2:])
    assert options["cache_seqlens"] is batch.seq_lens
    assert options["page_table"] is batch.block_table
    assert options["cu_seqlens_q"] is batch.query_start_loc
    # A window of 9 is the token itself and 8 to its left.
    names = ("max_seqlen_q", "softmax_scale", "causal", "window_size", "softcap")
    assert [options[name] for name in names] == [2, 0.125, True, (8, 0), 30.0]


def test_vllm_flash_attention_is_called_with_pages_and_lengths(monkeypatch: pytest.MonkeyPatch):
    recorded = fake(monkeypatch, "vllm.vllm_flash_attn", flash_attn_varlen_func=None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    query, kv_cache, batch = rows_of(ATTENTION, [2, 1], [20, 5])
    out = registry.op("paged_attention").provider("vllm").launcher(ATTENTION)(query, kv_cache, batch)
    ((_, _, options),) = recorded.calls
    assert out.shape == query.shape
    assert options["out"].data_ptr() == out.data_ptr()
    assert options["seqused_k"] is batch.seq_lens
    assert options["block_table"] is batch.block_table
    assert options["cu_seqlens_q"] is batch.query_start_loc
    names = ("max_seqlen_q", "max_seqlen_k", "softmax_scale", "causal", "window_size", "softcap", "fa_version")
    assert [options[name] for name in names] == [2, 20, 0.125, True, [-1, 0], 0.0, 3]


@pytest.mark.parametrize("contract", [ROPE, NORM_ROPE], ids=str)
def test_vllm_rotates_and_stores_by_its_own_kernels(
    monkeypatch: pytest.MonkeyPatch, contract: RopeAndCache | FusedQkNormRope
):
    recorded = fake(
        monkeypatch,
        "vllm._custom_ops",
        rotary_embedding=None,
        fused_qk_norm_rope=None,
        reshape_and_cache_flash=None,
    )
    inputs = inputs_of(contract, 5)
    qkv, positions, slots, kv_cache, cos_sin, *weights = inputs
    query, cache = registry.op(contract.name).provider("vllm").launcher(contract)(*inputs)
    (rotation, rotated, _), (store, stored, _) = recorded.calls
    heads, kv_heads = contract.num_heads, contract.num_kv_heads
    assert torch.equal(query, qkv[:, : heads * 64])
    assert cache is kv_cache
    if isinstance(contract, FusedQkNormRope):
        assert rotation == "fused_qk_norm_rope"
        assert rotated[:6] == (qkv, heads, kv_heads, kv_heads, 64, contract.epsilon)
        assert rotated[6] is weights[0]
        assert rotated[7] is weights[1]
        assert torch.equal(rotated[8], cos_sin.to(contract.dtype))
        assert rotated[9] is True
        assert rotated[10] is positions
    else:
        assert rotation == "rotary_embedding"
        assert rotated[0] is positions
        assert torch.equal(rotated[1], qkv[:, : heads * 64])
        assert torch.equal(rotated[2], qkv[:, heads * 64 : (heads + kv_heads) * 64])
        assert rotated[3] == 64
        assert torch.equal(rotated[4], cos_sin.to(contract.dtype))
    assert store == "reshape_and_cache_flash"
    assert torch.equal(stored[0].flatten(1), qkv[:, heads * 64 : (heads + kv_heads) * 64])
    assert torch.equal(stored[1].flatten(1), qkv[:, (heads + kv_heads) * 64 :])
    assert torch.equal(stored[2], kv_cache[:, :, :kv_heads])
    assert torch.equal(stored[3], kv_cache[:, :, kv_heads:])
    assert stored[4] is slots
    assert stored[5] == "auto"


@pytest.mark.parametrize(
    ("op", "provider", "contract", "reason"),
    [
        ("paged_attention", "torch", replace(ATTENTION, soft_cap=1.0), "no soft cap"),
        ("paged_attention", "flash_attn", replace(ATTENTION, dtype=torch.float32), "not float32"),
        ("paged_attention", "vllm", replace(ATTENTION, head_dim=512), "not 512"),
        ("paged_attention", "flashinfer", ATTENTION, "on the host"),
        ("fused_qk_norm_rope", "vllm", replace(NORM_ROPE, head_dim=96), "head_dim 96"),
    ],
)
def test_what_a_provider_cannot_do_it_says_in_words(op: str, provider: str, contract: Contract, reason: str):
    refusal = registry.op(op).provider(provider).refuses(contract)
    assert refusal is not None
    assert reason in refusal


@pytest.mark.parametrize("provider", ["flash_attn", "flashinfer", "vllm"])
def test_optional_attention_says_why_it_is_unavailable(provider: str):
    assert registry.op("paged_attention").provider(provider).why_not(CPU) is not None
