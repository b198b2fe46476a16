"""From ``Contract.key()`` back to the contract."""

from __future__ import annotations

import ast
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import torch

from parhelion.errors import ConfigError, PackError
from parhelion.ops.contract import Contract
from parhelion.ops.registry import op


def contract_of_key(key: str) -> Contract:
    """The contract whose ``key()`` this is.

    Raises:
        PackError: there is none here: the op is not known, or has other dimensions.
    """
    try:
        node = ast.parse(key, mode="eval").body
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            raise ValueError("it is no op with dimensions in parentheses")
        kind = op(node.func.id).contract
        types = get_type_hints(kind)
        known = {field.name for field in fields(kind)}
        values = {word.arg: _value(word.value, types[word.arg]) for word in node.keywords if word.arg in known}
        contract = kind(**values)
    except (SyntaxError, ValueError, TypeError, KeyError, AttributeError, ConfigError) as error:
        raise PackError(f"the contract {key[:200]!r} is not known here ({error}); tune its rows again") from None
    if contract.key() != key:
        raise PackError(f"the contract {key[:200]!r} is {contract.key()} here; tune its rows again")
    return contract


def _value(node: ast.expr, kind: Any) -> Any:
    """Dtypes and words come without quotes."""
    if not isinstance(node, ast.Name):
        return ast.literal_eval(node)
    return getattr(torch, node.id) if torch.dtype in (kind, *get_args(kind)) else node.id
