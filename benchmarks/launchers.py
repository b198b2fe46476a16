"""What Python spends on one launch of the same small Triton kernel, launcher by launcher.

Each is checked first: the packed launches eagerly and from a CUDA graph, the others eagerly. Then batches of launches
are timed in turns, without waiting for the GPU, which is done sooner than Python. ``--device cpu`` needs no GPU: there
a C function that does nothing stands in for the driver's, and only the packed launches are timed.

    python benchmarks/launchers.py [--device cpu] [--rounds N] [--output FILE]

Needs torch, Triton, msgspec, psutil and rich; cuda-core is measured if it is installed, and Helion is not needed.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from rich.console import Console

from parhelion.bench.machine import installed_version
from parhelion.bench.report import Measurement, make_report, to_table, write_json
from parhelion.errors import PackError
from parhelion.ops.kernel_config import KernelConfig
from parhelion.ops.packed_kinds import kind_of
from parhelion.ops.packed_launch import PackedKernel, PackedRunner
from parhelion.packs.format import Argument, Binary, Recipe
from parhelion.platform.device import device_name
from parhelion.platform.driver import Function, load_function
from parhelion.platform.driver_cuda import CudaDriver
from parhelion.platform.measure import summarize

RESULT = Path(__file__).parent / "results" / "h100_launchers.json"
KERNEL = "launchers.scale_rows"
CONFIG = KernelConfig(block_sizes=(256,))
NUM_ROWS, ROW_SIZE, BLOCK = 16, 256, 256
EPSILON = 1e-6
LARGE_SHARED_BYTES = 100 << 10
SIZES = ("num_rows", "row_size", "x_stride", "weight_stride", "bias_stride", "y_stride", "y_step")

Call = Callable[[], object]


@triton.jit(do_not_specialize=SIZES)
def scale_rows(
    x, weight, bias, y, num_rows, row_size, x_stride, weight_stride, bias_stride,  # noqa: ANN001
    y_stride, y_step, epsilon, BLOCK: tl.constexpr,  # noqa: ANN001
) -> None:  # fmt: skip
    """y = x * weight + bias + epsilon, a program a row."""
    row = tl.program_id(0)
    at = tl.arange(0, BLOCK)
    mask = (at < row_size) & (row < num_rows)
    scaled = tl.load(x + row * x_stride + at, mask) * tl.load(weight + at * weight_stride, mask)
    scaled += tl.load(bias + at * bias_stride, mask) + epsilon
    tl.store(y + row * y_stride + at * y_step, scaled, mask)


RECIPE = Recipe(
    parameters=("x", "weight", "bias", "y", "epsilon"),
    grid=("x.size(0)",),
    arguments=(
        *(Argument(name, "*") for name in ("x", "weight", "bias", "y")),
        Argument("x.size(0)", "i32"),
        Argument("x.size(1)", "i32"),
        Argument("x.stride(0)", "i32"),
        Argument("weight.stride(0)", "i32"),
        Argument("bias.stride(0)", "i32"),
        Argument("y.stride(0)", "i32"),
        Argument("y.stride(1)", "i32"),
        Argument("epsilon", "fp32"),
    ),
    equal=(("x.stride(1)", 1),),
    aligned=("x", "weight", "bias", "y"),
)


@dataclass(frozen=True)
class Settings:
    """What was measured.

    Attributes:
        device: what it calls itself, or what stood in for it.
        num_arguments: of the kernel.
        launches: in a batch, well below the depth of the GPU's queue.
        rounds: batches of each launcher.
        cuda_core: its version, if it is installed.
    """

    device: str
    rounds: int = 60
    launches: int = 200
    num_arguments: int = len(RECIPE.arguments)
    cuda_core: str | None = field(default_factory=lambda: installed_version("cuda-core"))


@dataclass(frozen=True)
class Work:
    """The operands of one launch."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    y: torch.Tensor

    @property
    def arguments(self) -> tuple[Any, ...]:
        """As an op's ``launch`` hands them to ``run``."""
        return self.x, self.weight, self.bias, self.y, EPSILON

    @property
    def sizes(self) -> tuple[int, ...]:
        """As the kernel takes them, behind the tensors."""
        return (*self.x.shape, self.x.stride(0), self.weight.stride(0), self.bias.stride(0), *self.y.stride())

    def expected(self) -> torch.Tensor:
        """In float64."""
        return self.x.double() * self.weight.double() + self.bias.double() + EPSILON


def make_work(device: torch.device) -> Work:
    """Random operands."""
    generator = torch.Generator(device).manual_seed(0)
    shapes = ((NUM_ROWS, ROW_SIZE), (ROW_SIZE,), (ROW_SIZE,), (NUM_ROWS, ROW_SIZE))
    return Work(*(torch.randn(shape, generator=generator, device=device) for shape in shapes))


def binary_of(work: Work, symbol: str, num_warps: int, shared_bytes: int) -> Binary:
    """What a pack would say about the kernel."""
    return Binary(
        kernel=KERNEL,
        config={"block_sizes": list(CONFIG.block_sizes)},
        kinds=tuple(map(kind_of, work.arguments)),
        symbol=symbol,
        file="",
        sha256="",
        num_bytes=0,
        num_warps=num_warps,
        shared_bytes=shared_bytes,
        registers=0,
        stack_bytes=0,
        recipe=RECIPE,
    )


def packed_calls(work: Work, binary: Binary, function: Function) -> dict[str, Call]:
    """A packed launch by itself, and with the look-up in front of it."""
    kernel = PackedKernel(binary, function, num_processors=1)
    run, launch, arguments = PackedRunner.of([kernel]), kernel.launch, work.arguments
    return {
        "packed binary": lambda: launch(*arguments),
        "packed binary, looked up": lambda: run(KERNEL, CONFIG, *arguments),
    }


def stand_in_calls(work: Work) -> dict[str, Call]:
    """Packed launches with a driver that does nothing."""
    library = SimpleNamespace(
        cuModuleLoadData=lambda *_: 0,
        cuModuleGetFunction=lambda *_: 0,
        # Says whether two threads' ids are equal, that is 0 for the two addresses that it is given here.
        cuLaunchKernelEx=ctypes.CDLL(None).pthread_equal,
    )
    function = CudaDriver(library, lambda _: 0).load_function(b"", scale_rows.__name__, 0, 0)
    return packed_calls(work, binary_of(work, scale_rows.__name__, 4, 0), function)


def compile_kernel(work: Work) -> Any:
    """Triton's compiled kernel; every launcher gets its binary."""
    return triton_call(work)()


def triton_call(work: Work) -> Callable[[], Any]:
    """Triton's own launch."""
    grid = (NUM_ROWS,)
    return lambda: scale_rows[grid](
        work.x, work.weight, work.bias, work.y, *work.sizes, EPSILON, BLOCK=BLOCK, num_warps=4
    )


def packed_function(compiled: Any, shared_bytes: int | None = None) -> Function:
    """The kernel as a pack's binary is loaded."""
    shared = compiled.metadata.shared if shared_bytes is None else shared_bytes
    return load_function(compiled.asm["cubin"], compiled.metadata.name, shared)


def cuda_core_call(work: Work, compiled: Any) -> Call:
    """NVIDIA's ``cuda.core``: addresses are asked for at each launch, numbers of the right widths are made once."""
    import numpy as np
    from cuda.core import Device, LaunchConfig, ObjectCode, Stream, launch

    Device(torch.cuda.current_device()).set_current()
    kernel = ObjectCode.from_cubin(compiled.asm["cubin"]).get_kernel(compiled.metadata.name)
    shared = compiled.metadata.shared
    config = LaunchConfig(grid=(NUM_ROWS, 1, 1), block=(32 * compiled.metadata.num_warps, 1, 1), shmem_size=shared)
    numbers = (*map(np.int32, work.sizes), np.float32(EPSILON), 0, 0)
    streams: dict[int, Any] = {}

    def call() -> None:
        handle = torch._C._cuda_getCurrentRawStream(0)
        stream = streams.get(handle)
        if stream is None:
            stream = streams[handle] = Stream.from_handle(handle)
        addresses = (work.x.data_ptr(), work.weight.data_ptr(), work.bias.data_ptr(), work.y.data_ptr())
        launch(stream, config, kernel, *addresses, *numbers)

    return call


def static_launcher_call(work: Work, compiled: Any) -> Call:
    """The launcher of the code that TorchInductor generates."""
    launcher = torch._C._StaticCudaLauncher
    shared, num_warps = compiled.metadata.shared, compiled.metadata.num_warps
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        # Some versions put the module before the function; registers and spills always follow it.
        function = launcher._load_kernel(file.name, compiled.metadata.name, shared, 0)[-3]
    types = "OOOO" + "i" * len(work.sizes) + "f" + "OO"
    arguments = (work.x, work.weight, work.bias, work.y, *work.sizes, EPSILON, None, None)

    def call() -> None:
        stream = torch._C._cuda_getCurrentRawStream(0)
        launcher._launch_kernel(function, NUM_ROWS, 1, 1, num_warps, shared, types, arguments, stream)

    return call


def gpu_calls(work: Work, notes: list[str]) -> dict[str, Call]:
    """Every launcher that is here; a note says why one is not."""
    compiled = compile_kernel(work)
    calls = packed_calls(
        work,
        binary_of(work, compiled.metadata.name, compiled.metadata.num_warps, compiled.metadata.shared),
        packed_function(compiled),
    )
    for name, make in (("cuda.core launch", cuda_core_call), ("torch's static launcher", static_launcher_call)):
        try:
            calls[name] = make(work, compiled)
        # Whatever another library's launcher lacks here, the rest can still be measured.
        except Exception as error:
            notes.append(f"{name} was not measured: {type(error).__name__}: {error}")
    return calls | {"triton kernel[grid]": triton_call(work)}


def check(calls: dict[str, Call], work: Work) -> list[str]:
    """Make sure that launchers are right: packed ones also from a graph that is replayed with other inputs."""
    for name, call in calls.items():
        _expect(f"{name}, eagerly", call, work)
    packed = [name for name in calls if name.startswith("packed")]
    for name in packed:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            calls[name]()
        work.x.neg_()
        _expect(f"{name}, from a graph", graph.replay, work)
    return [f"right eagerly: {', '.join(calls)}", f"right from a CUDA graph: {', '.join(packed)}"]


def _expect(name: str, call: Call, work: Work) -> None:
    work.y.fill_(float("nan"))
    call()
    torch.cuda.synchronize()
    # Three roundings of float32, of numbers below 32.
    torch.testing.assert_close(work.y.double(), work.expected(), rtol=0, atol=1e-5, msg=lambda m: f"{name}: {m}")


def check_loading(work: Work) -> list[str]:
    """Large shared memory is granted; what is no binary is refused."""
    compiled = compile_kernel(work)
    large = binary_of(work, compiled.metadata.name, compiled.metadata.num_warps, LARGE_SHARED_BYTES)
    calls = packed_calls(work, large, packed_function(compiled, LARGE_SHARED_BYTES))
    found = check({f"packed binary with {LARGE_SHARED_BYTES >> 10} KiB of shared memory": calls["packed binary"]}, work)
    try:
        load_function(b"no binary" + bytes(100), "scale_rows")
    except PackError as error:
        return [*found, f"what is no binary is refused: {error}"]
    raise AssertionError("the driver loaded what is no binary")


def measure(calls: dict[str, Call], settings: Settings, wait: Callable[[], None]) -> list[Measurement]:
    """Microseconds of Python a launch, in turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    for index in range(settings.rounds + 2):
        for name, call in calls.items():
            took = _microseconds(call, settings.launches)
            wait()
            # The first two rounds warm up.
            if index >= 2:
                samples[name].append(took)
    gc.enable()
    return [Measurement(name, "Python of one launch", "us", summarize(values)) for name, values in samples.items()]


def _microseconds(call: Call, launches: int) -> float:
    start = time.perf_counter()
    for _ in range(launches):
        call()
    return (time.perf_counter() - start) / launches * 1e6


def main() -> None:
    """Check, time, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    parser.add_argument("--output", type=Path, help=f"default: benchmarks/results/{RESULT.name}; on a CPU nothing")
    options = parser.parse_args()
    device = torch.device(options.device)
    work, notes = make_work(device), [f"a batch of launches is {Settings.launches}, timed before the GPU is waited for"]
    if device.type == "cpu":
        settings = Settings("a stand-in for the driver", options.rounds)
        measurements = measure(stand_in_calls(work), settings, lambda: None)
    else:
        settings = Settings(device_name(device), options.rounds)
        torch.cuda.synchronize()
        # An engine works on a stream of its own too.
        with torch.cuda.stream(torch.cuda.Stream()):
            calls = gpu_calls(work, notes)
            notes += check(calls, work) + check_loading(work)
            calls["torch.add(out=)"] = lambda: torch.add(work.x, work.x, out=work.y)
            measurements = measure(calls, settings, torch.cuda.synchronize)
    report = make_report("launchers", settings, measurements, notes)
    if options.output or device.type == "cuda":
        write_json(report, options.output or RESULT)
    for note in notes:
        print(note)
    Console().print(to_table(report))


if __name__ == "__main__":
    main()
