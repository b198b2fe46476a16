"""``rope_and_cache`` and ``fused_qk_norm_rope`` by ATen's kernels on a CPU, which rotate in place and store."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from parhelion.ops.contract import Tensors
from parhelion.ops.fused_qk_norm_rope import FusedQkNormRope
from parhelion.ops.registry import op
from parhelion.ops.rope_and_cache import RopeAndCache
from parhelion.ops.rope_and_cache.cpu import rotate_, rotations_at

CPU = torch.device("cpu")
ROPE = RopeAndCache(6, 2, 16, 8, 100, torch.float32)
NORM_ROPE = FusedQkNormRope(6, 2, 16, 1e-5, 8, 100, torch.float32)
CONTRACTS = (ROPE, replace(ROPE, head_dim=2), replace(ROPE, head_dim=64, num_kv_heads=6), NORM_ROPE)

# float32: the table and a few products of numbers up to about 4, each rounded by 6e-8 of itself. bfloat16: the table,
# the products, the sum and (with norms) the normed head are rounded, by 2^-9 of numbers of up to 8.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.08}


def sample(contract: RopeAndCache | FusedQkNormRope, num_tokens: int, seed: int = 0) -> Tensors:
    return contract.sample_inputs(num_tokens, CPU, torch.Generator().manual_seed(seed))


def turned(heads: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor) -> torch.Tensor:
    """A pair (i, i + head_dim / 2) is one complex number, and turning it a product with exp(i * angle)."""
    first, second = heads.double().chunk(2, -1)
    cos, sin = cos_sin.double()[positions].chunk(2, -1)
    numbers = torch.complex(first, second) * torch.complex(cos, sin)[:, None]
    return torch.cat((numbers.real, numbers.imag), -1)


def expected_heads(contract: RopeAndCache | FusedQkNormRope, inputs: Tensors) -> torch.Tensor:
    """[num_tokens, heads, head_dim] float64: queries and keys normed (or not) and turned, values as they were."""
    c = contract
    qkv, positions, _, _, cos_sin, *weights = inputs
    heads = qkv.double().view(len(qkv), -1, c.head_dim).clone()
    rotated = heads[:, : c.num_heads + c.num_kv_heads]
    if isinstance(c, FusedQkNormRope):
        rotated /= (rotated.square().mean(-1, keepdim=True) + c.epsilon).sqrt()
        rotated[:, : c.num_heads] *= weights[0].double()
        rotated[:, c.num_heads :] *= weights[1].double()
    rotated.copy_(turned(rotated, positions, cos_sin))
    return heads


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 13])
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.key())
def test_queries_and_keys_are_turned_and_what_is_stored_is_in_its_slots_and_nowhere_else(
    contract: RopeAndCache | FusedQkNormRope, num_tokens: int, dtype: torch.dtype
) -> None:
    contract = replace(contract, dtype=dtype)
    inputs = sample(contract, num_tokens)
    heads = expected_heads(contract, inputs)
    qkv, positions, slots, kv_cache, cos_sin, *_ = inputs
    before = [tensor.clone() for tensor in (positions, slots, kv_cache, cos_sin)]
    query, cache = op(contract.name).provider("torch").launcher(contract)(*inputs)
    assert query.dtype == dtype
    assert cache is kv_cache
    near = {"rtol": 0, "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(query.double(), heads[:, : contract.num_heads].flatten(1), **near)
    places = cache.view(-1, *cache.shape[2:])
    torch.testing.assert_close(places[slots].double(), heads[:, contract.num_heads :], **near)
    values = qkv.view(num_tokens, -1, contract.head_dim)[:, contract.num_heads + contract.num_kv_heads :]
    assert torch.equal(places[slots][:, contract.num_kv_heads :], values), "values are stored as they are"
    others = torch.ones(len(places), dtype=torch.bool)
    others[slots] = False
    assert torch.equal(places[others], before[2].view_as(places)[others]), "no other slot is written"
    for tensor, old in ((positions, before[0]), (slots, before[1]), (cos_sin, before[3])):
        assert torch.equal(tensor, old)


def test_position_0_is_not_turned() -> None:
    qkv, positions, *rest = sample(ROPE, 3)
    before = qkv.clone()
    query, _ = op("rope_and_cache").provider("torch").launcher(ROPE)(qkv, torch.zeros_like(positions), *rest)
    assert torch.equal(query, before[:, : query.shape[1]])


def test_a_bound_launcher_serves_step_after_step() -> None:
    *_, kv_cache, cos_sin = sample(ROPE, 5)
    launch = op("rope_and_cache").provider("torch").bind(ROPE, cos_sin)
    for seed, num_tokens in enumerate((5, 1, 1, 4)):
        qkv, positions, slots, _, _ = inputs = sample(ROPE, num_tokens, seed)
        heads = expected_heads(ROPE, inputs)
        query, _ = launch(qkv, positions, slots, kv_cache)
        torch.testing.assert_close(query.double(), heads[:, :6].flatten(1), rtol=0, atol=3e-6)


def test_rotated_queries_and_keys_meet_by_their_distance_only() -> None:
    *_, cos_sin = RopeAndCache(1, 1, 32, 8, 2000, torch.float32).sample_inputs(1, CPU, torch.Generator())
    query, key = torch.randn(2, 1, 1, 32, generator=torch.Generator().manual_seed(1))

    def score(query_position: int, key_position: int) -> torch.Tensor:
        def at(heads: torch.Tensor, position: int) -> torch.Tensor:
            rotations = rotations_at(cos_sin, torch.tensor([position]), torch.float32)
            return rotate_(heads.clone(), rotations.cos, rotations.sin)

        return (at(query, query_position) * at(key, key_position)).sum()

    # The table's entries are rounded to float32, and so are 32 products of numbers up to about 3.
    torch.testing.assert_close(score(1900, 1893), score(7, 0), rtol=0, atol=2e-5)
    assert abs(float(score(8, 0) - score(7, 0))) > 0.05


def test_rotations_are_looked_up_once_for_the_same_positions_and_again_for_others() -> None:
    *_, cos_sin = sample(ROPE, 1)
    positions = torch.tensor([3, 99])
    rotations = rotations_at(cos_sin, positions, torch.float32)
    assert rotations.cos.shape == rotations.sin.shape == (2, 1, 16)
    assert rotations_at(cos_sin, positions, torch.float32) is rotations
    others = rotations_at(cos_sin, torch.tensor([3, 98]), torch.float32)
    assert torch.equal(others.cos[0], rotations.cos[0])
    assert torch.equal(others.cos[1, 0, :8], cos_sin[98, :8])
    assert not torch.equal(others.cos, rotations.cos)


def test_every_layer_of_a_step_shares_its_rotations_whoever_computes_them() -> None:
    qkv, positions, slots, kv_cache, cos_sin = sample(ROPE, 5)
    op("rope_and_cache").provider("torch").bind(ROPE, cos_sin)(qkv, positions, slots, kv_cache)
    looked_up = positions._rotations
    weights = torch.ones(2, 16)
    op("fused_qk_norm_rope").provider("torch").bind(NORM_ROPE, cos_sin, *weights)(qkv, positions, slots, kv_cache)
    assert positions._rotations is looked_up


def test_rotations_of_another_dtype_or_table_are_looked_up_again() -> None:
    *_, cos_sin = sample(ROPE, 1)
    positions = torch.tensor([7])
    rotations_at(cos_sin, positions, torch.float32)
    halves = rotations_at(cos_sin, positions, torch.bfloat16)
    assert torch.equal(halves.cos[0, 0, 8:], cos_sin[7, :8].bfloat16())
    assert torch.equal(halves.sin[0, 0, :8], -cos_sin[7, 8:].bfloat16())
    assert torch.equal(halves.sin[0, 0, 8:], cos_sin[7, 8:].bfloat16())
    turned_back = torch.cat((cos_sin[:, :8], -cos_sin[:, 8:]), -1)
    assert torch.equal(rotations_at(turned_back, positions, torch.bfloat16).sin, -halves.sin)
