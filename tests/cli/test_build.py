"""``parhelion build`` as a user meets it; what it builds is tested in ``tests/tuning``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from parhelion.cli.main import build_app
from parhelion.ops.launching import BUCKETS
from parhelion.packs.store import read_pack
from parhelion.tuning import compile_pool, matrix
from parhelion.tuning.contract_key import contract_of_key
from parhelion.tuning.jobs import Request, no_more
from parhelion.tuning.matrix import Build
from parhelion.tuning.programs import Program, plain
from parhelion.tuning.target import Target
from tests.models.eagle3_heads import ORIGINAL_JSON, SPECULATORS_JSON, write_head
from tests.tuning.test_build_pack import fake_program

runner = CliRunner()


@pytest.fixture(autouse=True)
def _nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def build_matrix(contracts, targets, *, jobs, progress) -> list[Build]:
        assert jobs >= 1
        rows = [Build(c.name, c.key(), c.name, t.name, (1,)) for c in contracts for t in targets]
        return [replace(row, reason="no [type]", instead="torch") if row.op == "rms_norm" else row for row in rows]

    monkeypatch.setattr(matrix, "build_matrix", build_matrix)
    monkeypatch.setenv("COLUMNS", "200")


class FakePool:
    """Builds a program of any request in no time; none of ``silu_and_mul``."""

    def __init__(self, target: Target, *, num_processors: int | None, jobs: int | None) -> None:
        self.target = target
        assert jobs == 3

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *unused: object) -> None:
        pass

    def compile(
        self, requests: Sequence[Request], more: Callable[[], Sequence[Request]] = no_more
    ) -> Iterator[tuple[int, tuple[Program, ...] | str, float]]:
        for index, (contract, _, config) in enumerate(requests):
            program = fake_program(contract.name, plain(config))
            yield index, "no [type]" if contract.name == "silu_and_mul" else (program,), 0.25


def packs(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setattr(compile_pool, "CompilePool", FakePool)
    return runner.invoke(build_app(), ["build", "--jobs", "3", *arguments])


def test_a_pack_is_written_for_each_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = packs(monkeypatch, "smollm2-135m", "--target", "sm_90,gfx942", "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert "silu_and_mul on gfx942, 14 rows: no [type]" in result.output
    for target in ("sm_90", "gfx942"):
        pack = read_pack(tmp_path / f"smollm2-135m-unquantized-{target}.zip").pack
        assert pack.name == f"smollm2-135m-unquantized-{target}"
        assert pack.fingerprint.target == target
        assert pack.command == f"parhelion build smollm2-135m --target {target}"
        assert [(model.name, model.quantization) for model in pack.models] == [("smollm2-135m", "unquantized")]
        assert {"argmax", "embedding", "linear", "paged_attention", "top_k_top_p_sampling"} <= {
            row.op for row in pack.rows
        }


def test_a_folder_with_a_config_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = llama_like(tmp_path / "mine")
    result = packs(
        monkeypatch, str(folder), "--target", "sm_90", "--quantization", "fp8_per_token", "-o", str(tmp_path)
    )
    assert result.exit_code == 0, result.output
    pack = read_pack(tmp_path / "mine-fp8_per_token-sm_90.zip").pack
    assert pack.command == "parhelion build mine --target sm_90 --quantization fp8_per_token"
    [model] = pack.models
    assert (model.name, model.quantization) == ("mine", "fp8_per_token")
    contracts = {contract_of_key(row.contract) for row in pack.rows}
    products = {(c.in_features, c.out_features, c.bias) for c in contracts if c.name == "scaled_mm"}
    assert products == {(128, 256, False), (128, 128, False), (128, 352, False), (176, 128, False)}
    assert {c.sliding_window for c in contracts if c.name == "paged_attention"} == {None}
    # The fake pool builds no ``silu_and_mul``.
    unbuilt = {key for key in model.contracts if key.startswith("silu_and_mul(")}
    assert set(model.contracts) - unbuilt == {row.contract for row in pack.rows}


@pytest.mark.parametrize("config", [ORIGINAL_JSON, SPECULATORS_JSON], ids=["original", "speculators"])
def test_a_draft_heads_pack_has_what_it_calls(
    config: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = write_head(tmp_path / "mine", config)
    result = packs(monkeypatch, str(folder), "--target", "sm_90", "--tp", "1,3", "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    pack = read_pack(tmp_path / "mine-unquantized-tp1-3-sm_90.zip").pack
    assert pack.command == "parhelion build mine --target sm_90 --tp 1,3"
    # Three ranks cannot divide it, so each has all of it.
    [head] = pack.models
    assert (head.title, head.tp) == ("mine unquantized", 1)
    contracts = {contract_of_key(row.contract) for row in pack.rows}
    products = {(c.in_features, c.out_features) for c in contracts if c.name == "linear"}
    assert products == {(72, 32), (64, 64), (32, 32), (32, 80), (40, 32), (32, 20)}
    names = {c.name for c in contracts}
    assert {"argmax", "embedding", "fused_add_rms_norm", "fused_rope_attention", "rms_norm"} <= names
    for each in contracts:
        assert {row.num_tokens for row in pack.rows if row.contract == each.key()} == set(BUCKETS)
    unbuilt = {key for key in head.contracts if key.startswith("silu_and_mul(")}
    assert set(head.contracts) - unbuilt == {row.contract for row in pack.rows}


def test_a_listed_draft_head_is_built_by_its_name_and_is_never_quantized(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    result = packs(monkeypatch, "qwen3-8b-eagle3", "--target", "sm_90", "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    [head] = read_pack(tmp_path / "qwen3-8b-eagle3-unquantized-sm_90.zip").pack.models
    assert head.title == "qwen3-8b-eagle3 unquantized"
    for option in (("--quantization", "fp8_per_token"), ("--lm-head-quantization", "int8")):
        refused = packs(monkeypatch, "qwen3-8b-eagle3", "--target", "sm_90", *option, "-o", str(tmp_path))
        assert refused.exit_code == 1
        assert f"never quantized: leave {option[0]} out" in " ".join(refused.output.split())


def test_a_checkpoints_own_quantization_is_built_unless_another_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    dynamic = {"num_bits": 8, "type": "float", "strategy": "token", "symmetric": True, "dynamic": True}
    weights = dynamic | {"strategy": "channel", "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": dynamic}}
    own = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}
    folder = llama_like(tmp_path / "mine", quantization_config=own | {"ignore": ["lm_head"]})
    assert packs(monkeypatch, str(folder), "--target", "sm_90", "-o", str(tmp_path)).exit_code == 0
    assert read_pack(tmp_path / "mine-fp8_per_token-sm_90.zip").pack.models[0].quantization == "fp8_per_token"
    other = ("--quantization", "int8_per_token")
    refused = packs(monkeypatch, str(folder), "--target", "sm_90", *other, "-o", str(tmp_path))
    assert refused.exit_code == 1
    assert "is quantized as fp8_per_token already: leave --quantization out" in " ".join(refused.output.split())


def llama_like(folder: Path, **changes: object) -> Path:
    """A folder with a ``config.json`` of a model that is not listed."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 128,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_a_pack_of_several_numbers_of_ranks_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = packs(monkeypatch, "smollm2-135m", "--target", "sm_90", "--tp", "1,3", "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    pack = read_pack(tmp_path / "smollm2-135m-unquantized-tp1-3-sm_90.zip").pack
    assert pack.command == "parhelion build smollm2-135m --target sm_90 --tp 1,3"
    assert [model.title for model in pack.models] == ["smollm2-135m unquantized", "smollm2-135m unquantized tp 3"]
    rows = {row.contract for row in pack.rows}
    heads = {(3, 1), (9, 3)}
    assert {(c.num_heads, c.num_kv_heads) for c in map(contract_of_key, rows) if c.name == "paged_attention"} == heads
    refused = packs(monkeypatch, "smollm2-135m", "--target", "sm_90", "--tp", "2", "-o", str(tmp_path))
    assert refused.exit_code == 1
    assert "9 heads are no multiple of tp 2; tp may be 1, 3" in refused.output


def test_a_pack_of_a_quantized_head_names_it_and_has_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    head = ("--lm-head-quantization", "int8")
    result = packs(monkeypatch, "smollm2-135m", "--target", "sm_90", *head, "-o", str(tmp_path))
    assert result.exit_code == 0, result.output
    path = tmp_path / "smollm2-135m-unquantized-head_int8-sm_90.zip"
    pack = read_pack(path).pack
    assert pack.command == "parhelion build smollm2-135m --target sm_90 --lm-head-quantization int8"
    assert [model.title for model in pack.models] == ["smollm2-135m unquantized lm_head int8"]
    contracts = {contract_of_key(row.contract) for row in pack.rows}
    of_heads = {c.name for c in contracts if getattr(c, "out_features", 0) == 49152}
    assert of_heads == {"scaled_mm", "weight_only_mv"}
    assert "leave --lm-head-quantization out" in packs(monkeypatch, str(path), *head).output
    assert "leave --lm-head-quantization out" in packs(monkeypatch, "--check", *head).output


def test_a_pack_is_built_anew_for_its_own_target_or_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = str(tmp_path / "first.zip")
    assert packs(monkeypatch, "smollm2-135m", "--target", "sm_90", "-o", first).exit_code == 0
    result = packs(monkeypatch, first, "-o", str(tmp_path / "again"), "--json")
    assert result.exit_code == 0, result.output
    (written,) = json.loads(result.stdout)
    assert written["target"] == "sm_90"
    again = read_pack(Path(written["path"])).pack
    assert again.name == "first"
    assert again.rows == read_pack(Path(first)).pack.rows
    assert again.command == "parhelion build first.zip --target sm_90"
    assert packs(monkeypatch, first, "--target", "gfx950", "-o", str(tmp_path)).exit_code == 0
    assert read_pack(tmp_path / "first-gfx950.zip").pack.fingerprint.vendor == "amd"


def test_a_pack_lands_where_packs_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PARHELION_HOME", str(tmp_path))
    arguments = (
        "smollm2-135m",
        "--target",
        "sm_90",
        "--quantization",
        "fp8_per_token",
        "--quantization",
        "unquantized",
    )
    assert packs(monkeypatch, *arguments).exit_code == 0
    pack = read_pack(tmp_path / "packs" / "smollm2-135m-fp8_per_token-unquantized-sm_90.zip").pack
    assert len({row.contract for row in pack.rows}) * 14 == len(pack.rows)
    assert {"linear", "scaled_mm"} <= {row.op for row in pack.rows}
    assert "weight_only_mm" not in {row.op for row in pack.rows}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "needs a model or a pack"),
        (["smollm2-135m"], "--target sm_90,gfx942"),
        (["gpt-2", "--target", "sm_90"], "models that can be built for are smollm2-135m"),
        (["./nothing", "--target", "sm_90"], "a folder with a config.json or a .gguf file"),
        (["smollm2-135m", "--target", "sm_70"], "sm_70"),
        (["smollm2-135m", "--target", "sm_90", "--quick"], "belong to --check"),
        (["smollm2-135m", "--check"], "--model smollm2-135m"),
        (["smollm2-135m", "--target", "sm_90,sm_80", "-o", "one.zip"], "name a folder"),
    ],
)
def test_what_makes_no_pack_is_refused(arguments: list[str], named: str, monkeypatch: pytest.MonkeyPatch):
    result = packs(monkeypatch, *arguments)
    assert result.exit_code == 1
    assert named in " ".join(result.output.split())


def test_the_table_the_page_and_the_json_say_what_is_not_built(tmp_path: Path):
    page = tmp_path / "page.md"
    arguments = ["build", "--check", "--model", "qwen3-8b", "--target", "sm_90", "--quick"]
    result = runner.invoke(build_app(), [*arguments, "--output", str(page)])
    assert result.exit_code == 0, result.output
    assert "rms_norm on sm_90: no [type]; torch serves" in result.output
    assert "parhelion build --check --model qwen3-8b --target sm_90 --quick --output" in page.read_text()
    rows = json.loads(runner.invoke(build_app(), [*arguments, "--json"]).stdout)
    assert {row["target"] for row in rows} == {"sm_90"}
    assert [row["reason"] for row in rows if row["op"] == "rms_norm"] == ["no [type]"]


def test_a_pair_that_stops_building_fails_the_command(tmp_path: Path):
    expected = tmp_path / "expected.json"
    arguments = ["build", "--check", "--model", "qwen3-8b", "--target", "sm_90", "--quick"]
    assert runner.invoke(build_app(), [*arguments, "--write-expected", str(expected)]).exit_code == 0
    assert runner.invoke(build_app(), [*arguments, "--expect", str(expected)]).exit_code == 0
    pairs = json.loads(expected.read_bytes())
    [key] = [key for key in pairs if key.startswith("rms_norm(")]
    expected.write_text(json.dumps(pairs | {key: ["sm_90"]}))
    result = runner.invoke(build_app(), [*arguments, "--expect", str(expected)])
    assert result.exit_code == 1
    assert "was built for sm_90 and is not now: no [type]" in result.output


@pytest.mark.parametrize("option", [["--model", "gpt-2"], ["--target", "sm_70"], ["--quantization", "int3"]])
def test_unknown_names_are_refused(option: list[str]):
    result = runner.invoke(build_app(), ["build", "--check", *option])
    assert result.exit_code == 1
    assert option[1] in result.output
