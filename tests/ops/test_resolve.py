"""Who serves a contract: the table's order, what is preferred, what the user asked for, and what is said about it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from parhelion.errors import ConfigError
from parhelion.ops.contract import Contract, Launcher
from parhelion.ops.linear import Linear
from parhelion.ops.linear.cpu import OneDnnLinear
from parhelion.ops.paged_attention import PagedAttention
from parhelion.ops.preferences import ON_CPU, ON_GPU, preferred
from parhelion.ops.registry import op, op_names
from parhelion.ops.resolve import Resolver, parse_overrides
from parhelion.ops.rms_norm import RmsNorm
from parhelion.ops.rms_norm.providers import TorchRmsNorm
from parhelion.ops.silu_and_mul import SiluAndMul
from parhelion.ops.silu_and_mul.providers import TorchSiluAndMul

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NORM = RmsNorm(64, dtype=torch.float32)
SILU = SiluAndMul(64, torch.float32)


def test_every_name_in_the_tables_exists() -> None:
    for table in (ON_CPU, ON_GPU):
        for op_name, providers in table.items():
            for provider in providers:
                assert op(op_name).provider(provider).name == provider


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("op_name", op_names())
def test_every_op_ends_with_its_reference_which_serves_all(op_name: str, device: torch.device) -> None:
    assert preferred(op_name, device)[-1] == "reference"
    reference = op(op_name).provider("reference")
    assert reference.why_not(device) is None
    assert all(reference.refuses(contract) is None for contract in op(op_name).examples)


def test_the_first_that_serves_is_chosen_and_what_was_passed_over_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(CPU)
    assert resolver.provider(Linear(8, 16, torch.bfloat16)).name == "torch"
    assert resolver.notes == ["linear: onednn cannot serve: its activations are float32, not bfloat16"]
    monkeypatch.setattr(TorchRmsNorm, "why_not", lambda self, device: "it is broken")
    assert resolver.provider(NORM).name == "reference"
    assert resolver.notes[1:] == ["rms_norm: torch cannot serve: it is broken"]
    resolver.launcher(NORM)
    resolver.bind(Linear(8, 16, torch.bfloat16), torch.zeros(16, 8))
    assert resolver.chosen == {"linear": {"torch"}, "rms_norm": {"reference"}}


def test_tile_programs_that_no_pack_has_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for those of ops for which the user asked for them, and each once."""
    for name in ("rms_norm", "silu_and_mul"):
        programs = op(name).provider("helion")
        monkeypatch.setattr(programs, "why_not", lambda device: None)
        monkeypatch.setattr(programs, "bind", lambda contract: lambda *inputs: inputs)
    preferences = {"rms_norm": ("helion",)}
    resolver = Resolver(CPU, {"silu_and_mul": "helion"}, preferences)
    for _ in range(2):
        resolver.bind(NORM, torch.ones(64))
        resolver.launcher(SILU)
        resolver.launcher(Linear(8, 16, torch.bfloat16))
    assert resolver.chosen == {"rms_norm": {"helion"}, "silu_and_mul": {"helion"}, "linear": {"torch"}}
    assert resolver.unbuilt == [NORM]
    assert resolver.compiles


def test_the_same_is_noted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneDnnLinear, "missing", lambda self: "it is not there")
    resolver = Resolver(CPU)
    for out_features in (8, 16, 24):
        assert resolver.provider(Linear(8, out_features, torch.float32)).name == "torch"
    assert resolver.notes == ["linear: onednn cannot serve: it is not there"]


def test_a_contract_is_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(TorchRmsNorm, "why_not", lambda self, device: asked.append(device))
    resolver = Resolver(CPU)
    assert resolver.provider(NORM) is resolver.provider(RmsNorm(64, dtype=torch.float32))
    assert asked == [CPU]


def test_preferences_come_before_the_table_and_fall_back_to_it() -> None:
    resolver = Resolver(CPU, preferences={"rms_norm": ("reference",), "paged_attention": ("flash_attn",)})
    assert resolver.provider(NORM).name == "reference"
    assert resolver.provider(PagedAttention(4, 2, 64, 16, 0.125)).name == "torch"
    [note] = resolver.notes
    assert note.startswith("paged_attention: flash_attn cannot serve: ")


def test_what_the_user_asks_for_comes_before_all() -> None:
    resolver = Resolver(CPU, {"rms_norm": "reference"}, {"rms_norm": ("torch",)})
    assert resolver.provider(NORM).name == "reference"
    assert resolver.notes == []


def test_what_the_user_asks_for_and_cannot_serve_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"kernels has rms_norm=vllm, which cannot serve rms_norm\(hidden_size=64"):
        Resolver(CPU, {"rms_norm": "vllm"}).provider(NORM)
    with pytest.raises(ConfigError, match=r"linear=onednn.*its activations are float32, not bfloat16"):
        Resolver(CPU, {"linear": "onednn"}).provider(Linear(8, 16))


def test_equal_contracts_without_parameters_share_a_launcher() -> None:
    resolver = Resolver(CPU)
    launch = resolver.launcher(SILU)
    assert resolver.launcher(SiluAndMul(64, torch.float32)) is launch
    assert resolver.launcher(SiluAndMul(32, torch.float32)) is not None
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(launch(x), SILU.reference(x))


def test_layers_with_equal_contracts_share_what_was_compiled_unless_their_weights_are_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Contract] = []
    launcher = TorchRmsNorm.launcher

    def counted(self: TorchRmsNorm, contract: Contract) -> Launcher:
        made.append(contract)
        return launcher(self, contract)

    monkeypatch.setattr(TorchRmsNorm, "launcher", counted)
    resolver = Resolver(CPU)
    bound = [resolver.bind(NORM, torch.full((64,), scale)) for scale in (1.0, 2.0, 3.0)]
    assert len(made) == 1
    rows = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(bound[2](rows), 3 * bound[0](rows))
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(2))
    first, second = (resolver.bind(Linear(16, 24, torch.float32), weight) for weight in weights)
    torch.testing.assert_close(first(x), x @ weights[0].t())
    torch.testing.assert_close(second(x), x @ weights[1].t())


def test_a_bound_launcher_takes_what_is_not_a_parameter() -> None:
    x, weight = NORM.sample_inputs(3, CPU, torch.Generator().manual_seed(0))
    torch.testing.assert_close(Resolver(CPU).bind(NORM, weight)(x), NORM.reference(x, weight))


def test_what_serves_is_bound_even_where_there_are_no_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider may serve by something else than what checks and benchmarks call."""

    def bind(self: TorchSiluAndMul, contract: Contract, *weights: Any) -> Launcher:
        assert weights == ()
        return lambda x: "bound"

    monkeypatch.setattr(TorchSiluAndMul, "bind", bind)
    assert Resolver(CPU).launcher(SILU)(None) == "bound"


def test_overrides_are_written_op_equals_provider() -> None:
    assert parse_overrides(()) == {}
    assert parse_overrides(("rms_norm=torch", "linear=onednn")) == {"rms_norm": "torch", "linear": "onednn"}
    assert parse_overrides(("rms_norm=torch", "rms_norm=reference")) == {"rms_norm": "reference"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("rms_norm", r"'rms_norm'; write op=provider"),
        ("rms_norm=", r"'rms_norm='; write op=provider"),
        ("norm=torch", r"no op 'norm'; the ops are all_reduce_rms_norm, argmax, .*rms_norm"),
        ("=torch", r"no op ''"),
        ("rms_norm=cuda", r"rms_norm has no provider 'cuda'; its providers are reference, inductor, helion"),
    ],
)
def test_an_override_that_names_nothing_is_refused_with_the_names_there_are(entry: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_overrides((entry,))
