"""A layer's computation as data: a short sequence of contract calls over named values.

A layer states its sequence once, one op a call. A plan is a set of fusions; covering the sequence with it replaces
neighbouring calls by one fused call. The plain plan has no fusions, always exists, and is the oracle of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import Any

import torch

from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.resolve import Resolver


@dataclass(frozen=True)
class Call:
    """One op applied to values.

    Attributes:
        contract: which op, with its static dimensions.
        inputs, outputs: names of values, in the contract's order; inputs without the contract's weights.
        weights: parameters of the model, the contract's last inputs.
    """

    contract: Contract
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class Fusion:
    """Two neighbouring calls that one kernel can do: the second takes nothing but the first's first output, or all of
    its outputs and then something more.

    Attributes:
        first, second: the contracts' classes.
        fuse: the contract of both at once; None where these static dimensions have no fused kernel. Its inputs are the
            first's and what more the second takes, its weights the first's and then the second's; its outputs are the
            second's and then what else the first returned, but for what only passed between them.
    """

    first: type[Contract]
    second: type[Contract]
    fuse: Callable[[Any, Any], Contract | None]


@dataclass(frozen=True)
class Chain:
    """Neighbouring calls that fewer kernels can do, where each takes first what the one before it returns first.

    Attributes:
        classes: the contracts' classes.
        sizes: how many of the calls, in order, each of the kernels does.
        fuse: the contracts that do the same, one for each of ``sizes``; None where these static dimensions have no such
            kernels. Each takes what its calls take of others and then all their weights, in order; it returns what its
            last call returns and then, of the other calls from the last to the first, what it has updated of what it
            took. What else passes between the calls is theirs.
    """

    classes: tuple[type[Contract], ...]
    sizes: tuple[int, ...]
    fuse: Callable[..., tuple[Contract, ...] | None]


Plan = tuple[Fusion | Chain, ...]

PLAIN: Plan = ()


def cover(calls: Sequence[Call], plan: Plan) -> list[Call]:
    """The sequence with the plan's fusions and chains applied one after the other, each wherever it fits."""
    covered = list(calls)
    for each in plan:
        covered = _paired(covered, each) if isinstance(each, Fusion) else _chained(covered, each)
    return covered


def _chained(calls: Sequence[Call], chain: Chain) -> list[Call]:
    covered: list[Call] = []
    rest = list(calls)
    while rest:
        found = _fused_chain(rest, chain)
        covered += found or rest[:1]
        rest = rest[len(chain.classes) if found else 1 :]
    return covered


def _fused_chain(calls: Sequence[Call], chain: Chain) -> list[Call] | None:
    """The calls for the first ones; None if those are not of the chain."""
    own, later = calls[: len(chain.classes)], calls[len(chain.classes) :]
    if [type(call.contract) for call in own] != list(chain.classes):
        return None
    follows = all(call.inputs[0] == before.outputs[0] for before, call in pairwise(own))
    if not follows or not _keep_to_themselves(own, later):
        return None
    contracts = chain.fuse(*(call.contract for call in own))
    if contracts is None:
        return None
    ends = accumulate(chain.sizes)
    return [
        _as_one(contract, own[end - size : end])
        for contract, size, end in zip(contracts, chain.sizes, ends, strict=True)
    ]


def _keep_to_themselves(calls: Sequence[Call], later: Sequence[Call]) -> bool:
    """Whether each value that the calls make is read by one of them or stays as what they return, and nothing else of
    it is read later.
    """
    returned = _returned(calls)
    for number, call in enumerate(calls):
        behind = calls[number + 1 :]
        made_again = {name for each in behind for name in each.outputs}
        passing = [name for name in call.outputs if name not in returned or name in made_again]
        if not all(_is_read(name, behind) for name in passing):
            return False
    made = {name for call in calls for name in call.outputs}
    return not any(_is_read(name, later) for name in made.difference(returned))


def _as_one(contract: Contract, calls: Sequence[Call]) -> Call:
    weights = tuple(weight for call in calls for weight in call.weights)
    return Call(contract, _taken(calls), _returned(calls), weights)


def _taken(calls: Sequence[Call]) -> tuple[str, ...]:
    """What calls take that none of them has made before, in order."""
    taken: dict[str, None] = {}
    made: set[str] = set()
    for call in calls:
        taken.update(dict.fromkeys(name for name in call.inputs if name not in made))
        made.update(call.outputs)
    return tuple(taken)


def _returned(calls: Sequence[Call]) -> tuple[str, ...]:
    """What the last call makes, and what the others, from the last to the first, have updated of what they took."""
    taken = _taken(calls)
    updated = (name for call in reversed(calls[:-1]) for name in call.outputs if name in taken)
    return tuple(dict.fromkeys((*calls[-1].outputs, *updated)))


def _paired(calls: Sequence[Call], fusion: Fusion) -> list[Call]:
    covered: list[Call] = []
    for index, call in enumerate(calls):
        fused = _fused(covered[-1], call, calls[index + 1 :], fusion) if covered else None
        if fused is not None:
            covered[-1] = fused
        else:
            covered.append(call)
    return covered


def _fused(first: Call, second: Call, later: Sequence[Call], fusion: Fusion) -> Call | None:
    """One call for both; None if they are not of the fusion."""
    if not isinstance(first.contract, fusion.first) or not isinstance(second.contract, fusion.second):
        return None
    taken = len(first.outputs) if len(second.inputs) > 1 else 1
    if second.inputs[:taken] != first.outputs[:taken]:
        return None
    # What the first updates in place is there afterwards all the same.
    between = [first.outputs[0], *(name for name in first.outputs[1:taken] if name not in first.inputs)]
    if any(name not in second.outputs and _is_read(name, later) for name in between):
        return None
    contract = fusion.fuse(first.contract, second.contract)
    if contract is None:
        return None
    outputs = second.outputs + tuple(name for name in first.outputs if name not in between)
    return Call(contract, first.inputs + second.inputs[taken:], outputs, first.weights + second.weights)


def _is_read(value: str, calls: Sequence[Call]) -> bool:
    """Whether anyone reads the value before it is written again."""
    for call in calls:
        if value in call.inputs:
            return True
        if value in call.outputs:
            return False
    return False


def _dead(call: Call, later: Sequence[Call], kept: Sequence[str]) -> list[str]:
    """What nobody reads behind a call that has read it; of the values to keep only those that are written again."""
    written = {name for each in later for name in each.outputs}
    return [
        name
        for name in dict.fromkeys(call.inputs)
        if name not in call.outputs and not _is_read(name, later) and (name not in kept or name in written)
    ]


class Program:
    """A covered sequence, its providers resolved and its parameters bound.

    Args:
        calls: in order.
        resolver: finds the providers.
        names: where each value of the caller's list stands; the program's own values follow behind.
    """

    def __init__(self, calls: Sequence[Call], resolver: Resolver, names: Sequence[str]) -> None:
        # Not the calls themselves: they hold the weights as loaded, which a provider may have packed into its own form.
        self.contracts = tuple(call.contract for call in calls)
        index = {name: position for position, name in enumerate(names)}
        for call in calls:
            for name in call.outputs:
                index.setdefault(name, len(index))
        self.num_values = len(index)
        self._steps = [
            (*_step(call, resolver, index), tuple(index[name] for name in _dead(call, calls[number + 1 :], names)))
            for number, call in enumerate(calls)
        ]

    def __call__(self, values: list[Any]) -> None:
        """Run on values, which hold the caller's first and have room for ``num_values``. Outputs are left in them; what
        has been read for the last time is let go at once, so that its memory serves what follows.
        """
        for launch, take, single, several, dead in self._steps:
            result = launch(*take(values))
            if several is None:
                values[single] = result
            else:
                for position, output in zip(several, result, strict=True):
                    values[position] = output
            for position in dead:
                values[position] = None

    def contracts_at(self, num_tokens: int) -> tuple[Contract, ...]:
        """What is called for M = ``num_tokens``, in order: the same for all."""
        return self.contracts

    @property
    def num_launches(self) -> int:
        """Calls of the sequence; a fused kernel makes one of them."""
        return len(self._steps)


Take = Callable[[list[Any]], tuple[Any, ...]]


def _step(call: Call, resolver: Resolver, index: dict[str, int]) -> tuple[Launcher, Take, int, tuple[int, ...] | None]:
    launch = resolver.bind(call.contract, *call.weights) if call.weights else resolver.launcher(call.contract)
    outputs = tuple(index[name] for name in call.outputs)
    return launch, _taker([index[name] for name in call.inputs]), outputs[0], outputs if len(outputs) > 1 else None


def _taker(positions: list[int]) -> Take:
    if len(positions) == 1:
        only = positions[0]
        return lambda values: (values[only],)
    return itemgetter(*positions)
