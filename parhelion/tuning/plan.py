"""What is tuned: a row for every contract that a step of the model calls and every bucket of M, with its weight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract
from parhelion.ops.gemm.config import GemmConfig
from parhelion.ops.gemm.target import GemmTarget
from parhelion.ops.launching import BUCKETS, bucket_of, launch_module
from parhelion.ops.preferences import preferred
from parhelion.ops.provider import Provider
from parhelion.ops.registry import has_programs, needs_single_rows, op
from parhelion.ops.tile_programs import all_candidates
from parhelion.packs.format import NEVER_SERVE, TILE_PROGRAMS
from parhelion.tuning.head_calls import TunedHead, head_contracts, sees_requests, shared_head_contracts
from parhelion.tuning.model_calls import (
    TunedModel,
    alternative_contracts,
    called_contracts,
    edge_contracts,
    layer_contracts,
    left_to_ranks,
)

REFERENCE = "reference"

MOST_SAMPLED = 256
"""Requests that run at once (the default of ``EngineConfig.max_num_seqs``): the output head and what looks up the
inputs of steps of single tokens see no more.
"""

COMPILING_SIZES = (1, 16, 256)
"""Sizes of M at which those are measured who compile for seconds each time, and so never serve from a pack."""

MOST_ALTERNATIVE = 64
"""Up to so many tokens another way to compute a layer may be quicker: it saves launches."""

ONE_TOKEN_OPS = ("weight_only_mv",)
"""What pays for one token only."""

SHARED_BUCKET = 16
"""A GEMM's tile has at least so many rows, so smaller buckets launch the same programs."""


@dataclass(frozen=True)
class PlannedRow:
    """A row to be.

    Attributes:
        contract, bucket: which; M = ``bucket`` is what is measured.
        weight: how often a step calls it.
        rivals: other providers that may serve it here.
        compiling: others that are measured and may not serve; see ``NEVER_SERVE``.
        is_alternative: a step calls it instead of other rows, if that is quicker.
    """

    contract: Contract
    bucket: int
    weight: int
    rivals: tuple[str, ...] = ()
    compiling: tuple[str, ...] = ()
    is_alternative: bool = False


@dataclass(frozen=True)
class Plan:
    """All that is to be tuned.

    Attributes:
        model: for which; it may be a head.
        target: as configs know it, with the device's own number of processors.
        rows: in the order of the model's calls, each contract's by bucket.
        notes: what is left out, a sentence each.
        others: of ops that are not to be tuned, and that steps call all the same.
    """

    model: TunedModel | TunedHead
    target: GemmTarget
    rows: tuple[PlannedRow, ...]
    notes: tuple[str, ...] = ()
    others: tuple[PlannedRow, ...] = ()


@dataclass(frozen=True)
class _Called:
    """A contract, how often a step calls it, in which buckets, and whether it does so instead of others."""

    contract: Contract
    count: int
    buckets: tuple[int, ...]
    is_alternative: bool = False


def make_plan(
    model: TunedModel | TunedHead,
    target: GemmTarget,
    why_not: Callable[[Provider, Contract], str | None],
    *,
    ops: Sequence[str] = (),
    sizes: Sequence[int] = (),
) -> Plan:
    """The rows of a model, or of a head, on a target.

    Args:
        why_not: None if a provider can serve a contract on the device.
        ops: names; none means all that the model calls.
        sizes: of M; none means all buckets.

    Raises:
        ConfigError: an op is not known, or the model does not call it.
    """
    buckets = tuple(sorted({bucket_of(size) for size in sizes})) or BUCKETS
    if isinstance(model, TunedHead):
        counts, left = _called_by_head(model, buckets), sorted({each.name for each in shared_head_contracts(model)})
    else:
        counts, left = _called_by_model(model, target, buckets), list(left_to_ranks(model, target))
    called = sorted({each.contract.name for each in counts})
    for name in ops:
        if op(name).name not in called:
            raise ConfigError(f"{model.name} ({model.quantization.name}) calls no {name}; it calls {', '.join(called)}")
    rows: list[PlannedRow] = []
    others: list[PlannedRow] = []
    for each in counts:
        rivals = rivals_of(each.contract, why_not)
        compiling = tuple(name for name in rivals if name in NEVER_SERVE)
        serving = tuple(name for name in rivals if name not in NEVER_SERVE)
        (others if ops and each.contract.name not in ops else rows).extend(
            PlannedRow(
                each.contract,
                bucket,
                each.count,
                serving,
                compiling if bucket in COMPILING_SIZES else (),
                each.is_alternative,
            )
            for bucket in each.buckets
        )
    notes = [f"{name} needs all {model.tp} ranks, so it is not tuned: {_usual(name)} serves it" for name in left]
    return Plan(model, target, tuple(rows), tuple(notes), tuple(others))


def _called_by_model(model: TunedModel, target: GemmTarget, buckets: tuple[int, ...]) -> list[_Called]:
    few = _sampled(buckets)
    of_tokens, of_requests = edge_contracts(model, target=target)
    counts = [_Called(each, 1, buckets) for each in of_tokens]
    in_layers = layer_contracts(model, target)
    # A quantized head may quantize what it is given as layers do.
    counts += [_Called(each, count + of_requests.count(each), buckets) for each, count in in_layers.items()]
    counts += [_Called(each, 1, few) for each in of_requests if each not in in_layers]
    of_few_tokens = _called_by_few_tokens(model, target)
    for contract, count in alternative_contracts(model, target).items():
        most = MOST_ALTERNATIVE if contract in of_few_tokens else 1
        own = tuple(bucket for bucket in buckets if bucket <= most and _can_run(contract, bucket, target))
        counts.append(_Called(contract, count, own, is_alternative=True))
    return counts


def _can_run(contract: Contract, bucket: int, target: GemmTarget) -> bool:
    """Whether there are programs; those that wait for one another need so many processors."""
    if not has_programs(contract, bucket, target.name):
        return False
    return not needs_single_rows((contract,)) or bool(all_candidates(contract, bucket, target))


def _called_by_head(head: TunedHead, buckets: tuple[int, ...]) -> list[_Called]:
    few = _sampled(buckets)
    counts = head_contracts(head)
    return [_Called(each, count, few if sees_requests(head, each) else buckets) for each, count in counts.items()]


def _sampled(buckets: tuple[int, ...]) -> tuple[int, ...]:
    """Those of what sees one token a request."""
    return tuple(bucket for bucket in buckets if bucket <= MOST_SAMPLED)


def _called_by_few_tokens(model: TunedModel, target: GemmTarget) -> set[Contract]:
    """What blocks call in a way that more tokens than one may take, if need be of as many rows."""
    ways = called_contracts(model, target)
    return set().union(*(way for way in ways if all(each.name not in ONE_TOKEN_OPS for each in way)))


def _usual(name: str) -> str:
    """Who serves an op on a GPU without a pack."""
    there = {provider.name for provider in op(name).providers}
    return next(each for each in preferred(name, torch.device("cuda")) if each in there)


def rivals_of(contract: Contract, why_not: Callable[[Provider, Contract], str | None]) -> tuple[str, ...]:
    """Names of the providers beside the tile program and the reference that can compute a contract."""
    providers = [each for each in op(contract.name).providers if each.name not in (*TILE_PROGRAMS, REFERENCE)]
    return tuple(each.name for each in providers if why_not(each, contract) is None)


def why_not_on(device: torch.device) -> Callable[[Provider, Contract], str | None]:
    """Asks providers about a device."""
    return lambda provider, contract: provider.why_not(device) or provider.refuses(contract)


def refuses(provider: Provider, contract: Contract) -> str | None:
    """Where there is no device to ask about: everyone competes who takes the static dimensions."""
    return provider.refuses(contract)


def program_bucket(contract: Contract, bucket: int) -> int:
    """The bucket whose programs serve M up to ``bucket``."""
    shares = launch_module(contract.name).Config is GemmConfig
    return max(bucket, SHARED_BUCKET) if shares else bucket


def grouped(rows: Sequence[Any], of: Callable[[Any], PlannedRow]) -> list[list[Any]]:
    """Rows that launch the same programs together."""
    groups: dict[tuple[Contract, int], list[Any]] = {}
    for row in rows:
        planned = of(row)
        groups.setdefault((planned.contract, program_bucket(planned.contract, planned.bucket)), []).append(row)
    return list(groups.values())
