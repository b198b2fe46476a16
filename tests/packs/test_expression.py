"""Expressions mean what they say, and nothing else gets through."""

from __future__ import annotations

import ast
import random
import string
import warnings
from dataclasses import dataclass

import pytest

from parhelion.errors import PackError
from parhelion.packs.expression import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_PYTHON,
    NUM_PROCESSORS,
    check_parameters,
    parse,
    to_python,
)

TENSORS = ("x", "y")
SCALARS = ("split_k", "size")


@dataclass(frozen=True)
class FakeTensor:
    sizes: tuple[int, ...]

    def size(self, dimension: int) -> int:
        return self.sizes[dimension]

    def stride(self, dimension: int) -> int:
        return 1 if dimension == len(self.sizes) - 1 else self.sizes[-1]


VALUES = {"x": FakeTensor((33, 4096)), "y": FakeTensor((7, 5)), "split_k": 4, "size": 9, NUM_PROCESSORS: 132}


def value(text: str) -> int:
    """What the Python of an expression gives, where no builtin can be reached."""
    return eval(to_python(text, TENSORS, SCALARS), {"__builtins__": {}}, dict(VALUES))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", 42),
        (" 0x10 + 1_0 ", 26),
        ("x.size(0)", 33),
        ("x.stride(0) * 2", 8192),
        ("cdiv(x.size(0), 16)", 3),
        ("cdiv(x.size(0), 16) * cdiv(y.size(1), split_k)", 6),
        ("cdiv(-7, 2)", -3),
        ("min(x.size(0), num_processors)", 33),
        ("max(x.size(0), num_processors)", 132),
        ("min(max(1, 2), max(3, split_k))", 2),
        ("2 - 3 - 4", -5),
        ("2 - (3 - 4)", 3),
        ("-7 // 2", -4),
        ("-(7 // 2)", -3),
        ("7 % split_k * 2 + size", 15),
        ("- - 3", 3),
        ("size", 9),
    ],
)
def test_expressions_are_worth_what_they_say(text: str, expected: int) -> None:
    assert value(text) == expected


HOSTILE = [
    "",
    "   ",
    "__import__('os').system('true')",
    "__import__(1, 2)",
    "x.data_ptr()",
    "x.size",
    "x.size()",
    "x.size(0, 1)",
    "x.size(-1)",
    "x.size(True)",
    "x.size(16)",
    "x.size(1 + 1)",
    "x.size(split_k)",
    "x.size(dim=0)",
    "x.size(*y)",
    "x.size(0).real",
    "x.__class__",
    "x.__class__.__mro__",
    "split_k.size(0)",
    "split_k.real",
    "(x).y.size(0)",
    "x",
    "x + 1",
    "min(x, 1)",
    "z",
    "z.size(0)",
    "min",
    "min(1)",
    "min(1, 2, 3)",
    "min(*x)",
    "min(a=1, b=2)",
    "min(1, 2)(3)",
    "abs(1)",
    "pow(9, 9)",
    "9 ** 9",
    "9 ** 9 ** 9",
    "1 << 9",
    "1 / 2",
    "1 @ 2",
    "1 & 2",
    "~1",
    "+1",
    "not 1",
    "1 and 2",
    "1 if 2 else 3",
    "1 < 2",
    "1 == 1",
    "1.5",
    "1e3",
    "1j",
    "True",
    "None",
    "'a'",
    "b'a'",
    "f'{x}'",
    "...",
    "(1, 2)",
    "()",
    "[1]",
    "[x for x in y]",
    "(x for x in y)",
    "{1: 2}",
    "x[0]",
    "(z := 1)",
    "lambda: 1",
    "lambda x: x",
    "yield 1",
    "await x",
    "*x",
    "1; 2",
    "1\n2",
    "1 # comment",
    "x = 1",
    "import os",
    "007",
    "1)",
    "((1)",
    "1 //",
    "1 // 0",
    "1 % 0",
    "cdiv(1, 0)",
    str(1 << 63),
    "9" * 500,
    "1" + " + 1" * 200,
    "(" * 300 + "1" + ")" * 200,
    "-" * 400 + "1",
    "ｘ.size(0)",
    "x\u200b",
    "\0",
    "x.size(0)\0",
    "num_processors()",
    "num_processors.size(0)",
    "cdiv",
    "1if 1else 2",
    "__builtins__",
    "__debug__",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_everything_else_is_refused_with_its_text(text: str) -> None:
    with warnings.catch_warnings(), pytest.raises(PackError) as raised:  # noqa: PT012
        warnings.simplefilter("ignore")
        parse(text, TENSORS, SCALARS)
    assert repr(text)[:20] in str(raised.value)


def test_size_and_depth_have_limits() -> None:
    parse("1" + "+1" * MAX_DEPTH, (), ())
    with pytest.raises(PackError, match=f"nests more than {MAX_DEPTH} operations"):
        parse("1" + "+1" * (MAX_DEPTH + 1), (), ())
    with pytest.raises(PackError, match=f"{MAX_LENGTH + 1} characters, and {MAX_LENGTH} are allowed"):
        parse(" " * MAX_LENGTH + "1", (), ())
    nested = "x.size(0)"
    for _ in range(20):
        nested = f"min({nested}, 1)"
    assert parse(nested, TENSORS, ())
    with pytest.raises(PackError, match="min and max nest too deeply"):
        to_python(nested, TENSORS, ())


@pytest.mark.parametrize("seed", range(3))
def test_random_text_is_refused_or_is_arithmetic(seed: int) -> None:
    """What gets through holds no names but the given ones and no call but of size and stride."""
    generator = random.Random(seed)
    pieces = [
        *TENSORS,
        *SCALARS,
        NUM_PROCESSORS,
        "min(",
        "max(",
        "cdiv(",
        ".size(",
        ".stride(",
        ")",
        ",",
        "1",
        "0",
        "16",
    ]
    pieces += [" + ", "-", "*", "//", "%", "**", "(", ".", "=", ":", "[", "]", "__class__", "lambda ", " if ", " for "]
    accepted = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20_000):
            text = "".join(generator.choices(pieces, k=generator.randint(1, 8)))
            try:
                written = to_python(text, TENSORS, SCALARS)
            except PackError:
                continue
            accepted += 1
            assert len(written) <= MAX_PYTHON
            for node in ast.walk(ast.parse(written, mode="eval")):
                assert not isinstance(node, ast.Name) or node.id in VALUES, (seed, text)
                assert not isinstance(node, ast.Attribute) or node.attr in ("size", "stride"), (seed, text)
                assert not isinstance(node, ast.Call) or isinstance(node.func, ast.Attribute), (seed, text)
                assert not isinstance(node, ast.Pow | ast.Lambda | ast.Subscript | ast.comprehension), (seed, text)
    assert accepted > 100, seed


@pytest.mark.parametrize("seed", range(3))
def test_random_characters_raise_nothing_but_pack_errors(seed: int) -> None:
    generator = random.Random(seed)
    alphabet = string.printable + "éｘ\0\ud800"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5_000):
            text = "".join(generator.choices(alphabet, k=generator.randint(0, 20)))
            try:
                parse(text, TENSORS, SCALARS)
            except PackError:
                continue


@pytest.mark.parametrize("seed", range(3))
def test_random_arithmetic_agrees_with_an_oracle(seed: int) -> None:
    """The Python that is written gives what the expression gives with real functions, or divides by 0 as it does."""
    generator = random.Random(seed)
    oracle = dict(VALUES) | {"min": min, "max": max, "cdiv": lambda a, b: -(-a // b)}

    def grown(depth: int) -> str:
        if depth == 0 or generator.random() < 0.2:
            return generator.choice(["x.size(0)", "y.stride(0)", "split_k", NUM_PROCESSORS, "3", "16"])
        a, b = grown(depth - 1), grown(depth - 1)
        shapes = ["{} + {}", "({} - {})", "({}) * ({})", "({}) // ({})", "{} % ({})", "-({}) + {}"]
        return generator.choice([*shapes, "min({}, {})", "max({}, {})", "cdiv({}, {})"]).format(a, b)

    compared = 0
    for _ in range(300):
        text = grown(generator.randint(0, 4))
        if len(text) > MAX_LENGTH:
            continue
        try:
            expected = eval(text, oracle)
        except ZeroDivisionError:
            with pytest.raises(ZeroDivisionError):
                value(text)
            continue
        assert value(text) == expected, (seed, text)
        compared += 1
    assert compared > 200


@pytest.mark.parametrize(
    "names",
    [("x", "x"), ("a b",), ("",), ("1x",), ("lambda",), ("None",), ("__x",), ("min",), ("cdiv",), ("num_processors",),
     ("x=__import__('os')",), ("x):\n  evil(",), ("ｘ",)],
)  # fmt: skip
def test_parameters_that_are_no_plain_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(PackError, match="parameter"):
        check_parameters(names)


def test_ordinary_parameters_are_accepted() -> None:
    check_parameters(("x", "weight", "_block_size_0", "size"))
