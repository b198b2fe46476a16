"""What reaches the GPU's driver when a binary is loaded and launched."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest
import torch

from parhelion.errors import PackError, ParhelionError
from parhelion.platform import driver as driver_module
from parhelion.platform.driver import DriverError, current_stream, gpu_driver, open_library
from parhelion.platform.driver_cuda import CudaDriver, LaunchAttribute, LaunchConfig
from parhelion.platform.driver_hip import HipDriver
from tests.platform import fake_library
from tests.platform.fake_library import FUNCTION, MODULE, STREAM, FakeCuda, FakeHip, Launched

BINARY = b"\x7fELF\0 and more"


def parameters_of(*values: ctypes.c_uint64) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))


def test_structures_are_laid_out_as_cuda_has_them():
    assert ctypes.sizeof(LaunchAttribute) == 72
    assert ctypes.sizeof(LaunchConfig) == 56
    assert LaunchConfig.stream.offset == 32
    assert LaunchConfig.attributes.offset == 40


def test_a_cuda_binary_is_loaded_and_allowed_its_shared_memory():
    library = FakeCuda()
    function = CudaDriver(library, fake_library.current_stream).load_function(BINARY, "add", 49153, 1)
    assert function.handle.value == FUNCTION
    assert function.module.value == MODULE
    expected = [("load", b"\x7fELF"), ("get", MODULE, b"add"), ("set", FUNCTION, 8, 49153)]
    assert library.calls == expected


def test_shared_memory_that_every_function_may_have_is_not_asked_for():
    library = FakeCuda()
    CudaDriver(library, fake_library.current_stream).load_function(BINARY, "add", 49152, 0)
    assert [call[0] for call in library.calls] == ["load", "get"]


@pytest.mark.parametrize("programmatic", [False, True])
def test_a_cuda_launch_passes_grid_block_shared_memory_stream_and_values(programmatic):
    library = FakeCuda(num_parameters=2)
    first, second = ctypes.c_uint64(0x7F1234567890), ctypes.c_uint64(7)
    function = CudaDriver(library, fake_library.current_stream).load_function(BINARY, "add", 1024, 3)
    launch = function.launcher(parameters_of(first, second), 4, programmatic)
    launch(5, 6, 7)
    second.value = 8
    launch(2**31, 1, 1)
    attributes = ((6, 1),) if programmatic else ()
    values = [tuple(value.to_bytes(8, "little") for value in (0x7F1234567890, last)) for last in (7, 8)]
    assert library.launched == [
        Launched(FUNCTION, (5, 6, 7), (128, 1, 1), 1024, STREAM + 3, values[0], attributes),
        Launched(FUNCTION, (2**31, 1, 1), (128, 1, 1), 1024, STREAM + 3, values[1], attributes),
    ]


def test_hip_is_called_with_the_same_and_its_wider_warps():
    library = FakeHip(num_parameters=1)
    value = ctypes.c_uint64(0x7F1234567890)
    function = HipDriver(library, fake_library.current_stream).load_function(BINARY, "add", 65536, 2)
    function.launcher(parameters_of(value), 4, False)(5, 6, 7)
    assert library.calls == [("load", b"\x7fELF"), ("get", MODULE, b"add")]
    values = (value.value.to_bytes(8, "little"),)
    assert library.launched == [Launched(FUNCTION, (5, 6, 7), (256, 1, 1), 65536, STREAM + 2, values)]


def drivers() -> list[tuple[FakeCuda | FakeHip, CudaDriver | HipDriver, str]]:
    cuda, hip = FakeCuda(), FakeHip()
    return [
        (cuda, CudaDriver(cuda, fake_library.current_stream), "cu"),
        (hip, HipDriver(hip, fake_library.current_stream), "hip"),
    ]


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("call", ["ModuleLoadData", "ModuleGetFunction"])
def test_a_binary_that_cannot_be_loaded_is_an_error_in_the_drivers_words(kind, call):
    library, driver, prefix = drivers()[kind]
    library.fails[prefix + call] = 209
    with pytest.raises(PackError, match=rf"{prefix}{call} failed for add: words of the driver \(209\)"):
        driver.load_function(BINARY, "add", 0, 0)


@pytest.mark.parametrize("kind", [0, 1])
def test_a_launch_that_is_refused_is_an_error_in_the_drivers_words(kind):
    library, driver, prefix = drivers()[kind]
    launch = driver.load_function(BINARY, "add", 0, 0).launcher(parameters_of(), 1, False)
    library.fails |= {"cuLaunchKernelEx": 700, "hipModuleLaunchKernel": 700}
    with pytest.raises(DriverError, match=rf"{prefix}\w+ failed for add with grid \(9, 1, 1\): words of .* \(700\)"):
        launch(9, 1, 1)
    assert not library.launched


def test_too_much_shared_memory_is_an_error():
    library = FakeCuda()
    library.fails["cuFuncSetAttribute"] = 1
    with pytest.raises(PackError, match="cuFuncSetAttribute failed for add"):
        CudaDriver(library, fake_library.current_stream).load_function(BINARY, "add", 1 << 20, 0)


def test_a_missing_driver_is_named():
    with pytest.raises(DriverError, match=r"libnothing\.so\.9 was not found: launching needs it"):
        open_library(("libnothing.so.9",), "launching")


def test_a_torch_without_gpu_support_is_named(monkeypatch):
    monkeypatch.setattr(torch, "_C", object())
    with pytest.raises(ParhelionError, match="built without GPU support"):
        current_stream()


@pytest.mark.parametrize(("hip", "kind"), [(None, CudaDriver), ("6.4", HipDriver)])
def test_torch_says_which_driver_it_is(hip, kind, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(driver_module, "current_stream", lambda: fake_library.current_stream)
    monkeypatch.setattr("parhelion.platform.driver_cuda.open_cuda", FakeCuda)
    monkeypatch.setattr("parhelion.platform.driver_hip.open_hip", FakeHip)
    gpu_driver.cache_clear()
    try:
        assert isinstance(gpu_driver(), kind)
        assert gpu_driver() is gpu_driver()
    finally:
        gpu_driver.cache_clear()


def test_loading_takes_torchs_current_gpu_once_its_context_is_there(monkeypatch):
    library, order = FakeCuda(), []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("context"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: order.append("device") or 3)
    monkeypatch.setattr(driver_module, "gpu_driver", lambda: CudaDriver(library, fake_library.current_stream))
    assert driver_module.load_function(BINARY, "add").device_index == 3
    assert order == ["context", "device"]


def test_launching_imports_neither_triton_nor_helion():
    code = (
        "import sys, parhelion.ops.packed_launch, parhelion.platform.driver_cuda, parhelion.platform.driver_hip\n"
        "assert not {'helion', 'triton', 'sklearn'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
