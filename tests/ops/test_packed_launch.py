"""Recipes turned into launches, seen from the other side of the driver."""

from __future__ import annotations

import ctypes
import struct

import pytest
import torch

from parhelion.errors import PackError
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.packed_kinds import key_of_kind, kind_of
from parhelion.ops.packed_launch import PackedAssumptionError, PackedKernel, PackedRunner, PackMissError, key_of
from parhelion.packs.format import Argument, Binary, Recipe
from parhelion.platform.driver_cuda import CudaDriver
from tests.platform import fake_library
from tests.platform.fake_library import STREAM, FakeCuda

NUM_PROCESSORS = 132
CONFIG = {"block_sizes": [16], "num_warps": 8}

RECIPE = Recipe(
    parameters=("x", "bias", "y", "epsilon", "dtype", "swap"),
    grid=("cdiv(x.size(0), 16) * 4", "min(y.size(1), num_processors)"),
    arguments=(
        Argument("x", "*"),
        Argument("y", "*"),
        Argument("x.size(0)", "i64"),
        Argument("y.stride(0)", "i32"),
        Argument("max(x.size(0), 40) - 50", "i32"),
        Argument("epsilon", "fp32"),
        Argument("epsilon", "fp64"),
        Argument("swap", "i1"),
    ),
    equal=(("x.size(1)", 64), ("y.stride(1)", 1)),
    aligned=("x", "y", "y.stride(0)"),
)
KINDS = ("bfloat16[2]", "None", "float32[2]", "1e-06", "torch.float32", "True")


def binary(recipe: Recipe = RECIPE, kinds: tuple[str, ...] = KINDS, **changes) -> Binary:
    fields = {"kernel": "gemm.gemm", "config": CONFIG, "file": "gemm.cubin", "num_warps": 8, "shared_bytes": 2048}
    rest = {"symbol": "_gemm", "sha256": "", "num_bytes": 4, "registers": 32, "stack_bytes": 0}
    return Binary(recipe=recipe, kinds=kinds, **(rest | fields | changes))


def load(library: FakeCuda, given: Binary, device_index: int = 0) -> PackedKernel:
    driver = CudaDriver(library, fake_library.current_stream)
    function = driver.load_function(b"\x7fELF", given.symbol, given.shared_bytes, device_index)
    library.num_parameters = len(given.recipe.arguments) + 2
    return PackedKernel(given, function, NUM_PROCESSORS)


def arguments(num_rows: int = 33, width: int = 192) -> tuple[object, ...]:
    x = torch.zeros(num_rows, 64, dtype=torch.bfloat16)
    return x, None, torch.zeros(num_rows, width), 1e-6, torch.float32, True


def test_a_launch_passes_what_the_recipe_says():
    library = FakeCuda()
    given = arguments()
    load(library, binary(), device_index=2)(*given)
    (launched,) = library.launched
    assert launched.grid == (12, 132, 1)
    assert launched.block == (256, 1, 1)
    assert launched.shared_bytes == 2048
    assert launched.stream == STREAM + 2
    assert launched.attributes == ()
    unpacked = [
        struct.unpack_from(kind, value)[0] for kind, value in zip("QQqiifd?QQ", launched.parameters, strict=True)
    ]
    epsilon = struct.unpack("f", struct.pack("f", 1e-6))[0]
    addresses = [given[0].data_ptr(), given[2].data_ptr()]
    assert unpacked == [*addresses, 33, 192, -10, epsilon, 1e-6, True, 0, 0]


def test_each_launch_passes_its_own_values():
    library = FakeCuda()
    kernel = load(library, binary())
    for num_rows in (1, 100):
        kernel(*arguments(num_rows, 16))
    assert [launched.grid for launched in library.launched] == [(4, 16, 1), (28, 16, 1)]
    sizes = [struct.unpack("q", launched.parameters[2])[0] for launched in library.launched]
    assert sizes == [1, 100]


def test_programmatic_launches_are_marked_as_such():
    library = FakeCuda()
    load(library, binary(programmatic=True))(*arguments())
    assert library.launched[0].attributes == ((6, 1),)


def test_an_empty_grid_launches_nothing():
    library = FakeCuda()
    load(library, binary())(*arguments(num_rows=0))
    load(library, binary())(*arguments(width=0)[:2], torch.zeros(33, 192)[:, :0], *arguments()[3:])
    assert not library.launched


def refused(given: tuple[object, ...]) -> PackedAssumptionError:
    library = FakeCuda()
    with pytest.raises(PackedAssumptionError) as caught:
        load(library, binary())(*given)
    assert not library.launched
    assert str(caught.value).startswith("gemm.gemm: ")
    return caught.value


def test_a_size_that_was_compiled_in_must_be_that():
    error = refused((torch.zeros(33, 65, dtype=torch.bfloat16), *arguments()[1:]))
    assert (error.kernel, error.expression, error.value) == ("gemm.gemm", "x.size(1)", 65)
    assert "x.size(1) is 65, and its binary was compiled for 64" in str(error)


def test_a_tensor_that_was_taken_for_aligned_must_be():
    shifted = torch.zeros(33 * 64 + 4, dtype=torch.bfloat16)[4:].view(33, 64)
    error = refused((shifted, *arguments()[1:]))
    assert (error.expression, error.value) == ("x", shifted.data_ptr())
    assert "multiples of 16" in str(error)


def test_a_stride_that_was_taken_for_a_multiple_must_be():
    error = refused((*arguments()[:2], torch.zeros(33, 200), *arguments()[3:]))
    assert (error.expression, error.value) == ("y.stride(0)", 200)


def test_a_value_that_does_not_fit_is_named():
    wide = torch.zeros(16).as_strided((1, 16), (2**31, 1))
    error = refused((*arguments(2)[:2], wide, *arguments()[3:]))
    assert (error.expression, error.value) == ("y.stride(0)", 2**31)
    assert "i32" in str(error)


def test_a_grid_that_does_not_fit_is_named():
    recipe = Recipe(("x",), ("x.size(0) - 5",), (Argument("x", "*"),))
    library = FakeCuda()
    with pytest.raises(PackedAssumptionError, match=r"grid \(x.size\(0\) - 5\) is \(-4,\)"):
        load(library, binary(recipe, ("float32[1]",)))(torch.zeros(1))


def test_launching_reads_each_extent_as_a_local_and_calls_nothing_else():
    source = load(FakeCuda(), binary()).source
    assert source.count("x.shape\n") == 1
    assert ".size(" not in source
    assert source.startswith("def launch(x, bias, y, epsilon, dtype, swap, /):\n")


@pytest.mark.parametrize(
    ("recipe", "kinds", "words"),
    [
        (Recipe(("x",), ("x.size(1)",), ()), ("float32[1]",), r"x.size\(1\), and x has 1 dimensions"),
        (Recipe(("x",), ("x.__class__",), ()), ("float32[1]",), "__class__"),
        (Recipe(("x",), ("exit(1, 2)",), ()), ("float32[1]",), "exit"),
        (Recipe(("x, *y",), ("1",), ()), ("float32[1]",), "no plain name"),
        (Recipe(("__launch",), ("1",), ()), ("float32[1]",), "no plain name"),
        (Recipe(("x",), ("1",), (Argument("y", "*"),)), ("float32[1]",), "none of its tensors"),
        (Recipe(("x",), ("1",), (Argument("x", "*"),)), ("None",), "none of its tensors"),
        (Recipe(("x",), ("1",), (Argument("x", "i32"),)), ("float32[1]",), "'x' is a tensor"),
        (Recipe(("x",), ("1",), (Argument("x", "u8"),)), ("3",), "'u8' instead of one of"),
        (Recipe(("x",), (), ()), ("3",), "0 dimensions instead of 1 to 3"),
        (Recipe(("x",), ("1",), ()), ("3", "4"), "1 parameters and 2 kinds"),
        (Recipe(("x",), ("1",), ()), ("float33[1]",), r"'float33\[1\]' is no kind"),
    ],
)
def test_a_recipe_that_cannot_be_used_is_refused_at_load(recipe, kinds, words):
    with pytest.raises(PackError, match=words):
        load(FakeCuda(), binary(recipe, kinds))


def test_a_binary_that_wants_scratch_memory_is_refused_at_load():
    with pytest.raises(PackError, match=r"gemm\.cubin wants 128 bytes of scratch memory"):
        load(FakeCuda(), binary(scratch_bytes=128))


def test_a_config_that_cannot_be_read_is_refused():
    with pytest.raises(PackError, match="its config cannot be read"):
        key_of(binary(config={"num_warps": "many"}))


@pytest.mark.parametrize(
    "argument",
    [
        torch.zeros(2, 3, 4),
        torch.zeros((), dtype=torch.float8_e4m3fn),
        torch.int8,
        None,
        True,
        7,
        -3,
        1e-6,
        "swap",
        (1, 2),
    ],
)
def test_a_kind_becomes_what_a_runner_looks_an_argument_up_by(argument):
    expected = (argument.dtype, argument.ndim) if isinstance(argument, torch.Tensor) else argument
    found = key_of_kind(kind_of(argument))
    assert found == expected
    assert type(found) is type(expected)


def runner(library: FakeCuda) -> PackedRunner:
    other = binary(kinds=("int8[2]", *KINDS[1:]), file="int8.cubin")
    return PackedRunner.of([load(library, binary()), load(library, other)], target="sm_90")


def test_a_runner_finds_the_binary_by_name_config_and_kinds():
    library = FakeCuda()
    run = runner(library)
    config = KernelConfig(block_sizes=(16,), num_warps=8)
    run("gemm.gemm", config, *arguments())
    run("gemm.gemm", config, torch.zeros(33, 64, dtype=torch.int8), *arguments()[1:])
    run("gemm.gemm", config, torch.nn.Parameter(arguments()[0]), *arguments()[1:])
    assert len(library.launched) == 3
    assert run.target == "sm_90"


@pytest.mark.parametrize(
    ("kernel", "num_warps", "dtype", "words"),
    [
        (
            "gemm.gemm",
            8,
            torch.float32,
            r"for \(float32\[2\], None.*with this config it has \(bfloat16\[2\].*\(int8\[2\]",
        ),
        ("gemm.gemm", 4, torch.int8, "it has the configs KernelConfig.*num_warps=8"),
        ("gemm.add", 8, torch.int8, "no binary of gemm.add .*it has the kernels gemm.gemm; "),
    ],
)
def test_a_runner_says_what_it_misses_and_what_it_has(kernel, num_warps, dtype, words):
    library = FakeCuda()
    config = KernelConfig(block_sizes=(16,), num_warps=num_warps)
    with pytest.raises(PackMissError, match=words) as caught:
        runner(library)(kernel, config, torch.zeros(33, 64, dtype=dtype), *arguments()[1:])
    assert caught.value.kernel == kernel
    assert not library.launched


def test_two_binaries_for_the_same_arguments_are_refused():
    library = FakeCuda()
    with pytest.raises(PackError, match=r"two binaries for the same arguments, gemm.cubin and b.cubin"):
        PackedRunner.of([load(library, binary()), load(library, binary(file="b.cubin"))])


def test_what_a_kernel_needs_lives_as_long_as_what_launches_it():
    library = FakeCuda()
    launch = load(library, binary()).launch
    ballast = [(ctypes.c_uint64 * 10)(*(10 * [2**64 - 1])) for _ in range(1000)]
    launch(*arguments())
    assert library.launched[0].parameters[-2:] == (bytes(8), bytes(8))
    assert ballast
