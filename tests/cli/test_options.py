"""Command-line options are the fields of the option records, no more and no fewer."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from parhelion.cli.options import arguments_of, attribute_docs, options_of, parse_token_map, record_options
from parhelion.config import EngineConfig, ServerConfig
from parhelion.types import SamplingParams

runner = CliRunner()


def run_command(arguments: list[str], **settings: Any) -> dict[str, Any]:
    """Run a command that takes all three records and return what it was given."""
    seen: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    @record_options(**settings)
    def command(sampling: SamplingParams, engine: EngineConfig, server: ServerConfig, extra: int = 5) -> None:
        seen.update(sampling=sampling, engine=engine, server=server, extra=extra)

    seen["result"] = runner.invoke(app, arguments)
    return seen


@pytest.mark.parametrize("record", [EngineConfig, SamplingParams, ServerConfig])
def test_every_field_is_described_and_becomes_an_option(record: type) -> None:
    names = [field.name for field in fields(record)]
    assert set(names) <= set(attribute_docs(record))
    assert [option.name for option in options_of(record, (), {})] == names


def test_left_out_options_give_the_records_own_defaults() -> None:
    seen = run_command(["some-model"])
    assert seen["engine"] == EngineConfig(model="some-model")
    assert seen["sampling"] == SamplingParams()
    assert seen["server"] == ServerConfig()
    assert seen["extra"] == 5


def test_each_kind_of_option_is_parsed() -> None:
    seen = run_command(
        [
            *("m", "--kv-cache-memory", "512MiB", "--dtype", "bfloat16", "--no-overlap", "--compile", "--threads", "3"),
            *(
                "--stop",
                "a",
                "--stop",
                "b",
                "--stop-token-id",
                "7",
                "--logit-bias",
                "3=-100,5=1.5",
                "--temperature",
                "0",
            ),
            *("--api-key", "k", "--max-body-bytes", "1k", "--extra", "9"),
        ]
    )
    engine = EngineConfig(
        model="m", kv_cache_memory=512 << 20, dtype="bfloat16", overlap=False, compile=True, threads=3
    )
    assert seen["engine"] == engine
    sampling = SamplingParams(stop=("a", "b"), stop_token_ids=(7,), logit_bias={3: -100.0, 5: 1.5}, temperature=0.0)
    assert seen["sampling"] == sampling
    assert seen["server"] == ServerConfig(api_keys=("k",), max_body_bytes=1024)
    assert seen["extra"] == 9


def test_a_field_that_two_records_share_is_one_option_for_both() -> None:
    seen = run_command(["m", "--seed", "11"])
    assert (seen["engine"].seed, seen["sampling"].seed) == (11, 11)
    assert run_command(["m"])["sampling"].seed is None


def test_a_commands_own_defaults_hold_until_an_option_is_given() -> None:
    defaults = {"max_tokens": None, "temperature": 0.5}
    assert run_command(["m"], defaults=defaults)["sampling"] == SamplingParams(max_tokens=None, temperature=0.5)
    given = run_command(["m", "--max-tokens", "3"], defaults=defaults)["sampling"]
    assert given == SamplingParams(max_tokens=3, temperature=0.5)


def test_excluded_fields_are_no_options() -> None:
    result = run_command(["m", "--n", "2"], exclude=("n",))["result"]
    assert result.exit_code == 2
    assert "No such option" in result.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--temperature", "900"], "temperature is 900.0; it must lie in"),
        (["--kv-cache-memory", "12y"], "12y"),
        (["--dtype", "int3"], "float32"),
        (["--logit-bias", "x"], "TOKEN_ID=VALUE"),
        (["--max-num-seqs", "0"], "max_num_seqs is 0"),
    ],
)
def test_an_unusable_value_is_a_usage_error_that_names_it(arguments: list[str], complaint: str) -> None:
    result = run_command(["m", *arguments])["result"]
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.replace("│", " ").split())


def test_a_missing_model_is_a_usage_error() -> None:
    assert run_command([])["result"].exit_code == 2


def test_a_record_survives_being_written_as_options_and_read_again() -> None:
    engine = EngineConfig(
        model="m",
        kv_cache_memory=1 << 28,
        overlap=False,
        compile=True,
        threads=2,
        dtype="float32",
        kv_cache_fraction=0.5,
    )
    assert run_command(["m", *arguments_of(engine)])["engine"] == engine
    server = ServerConfig(port=1, api_keys=("a", "b"))
    assert run_command(["m", *arguments_of(server)])["server"] == server


def test_a_field_without_a_description_is_refused() -> None:
    class Undocumented(EngineConfig):
        """Nothing is said of the fields."""

    with pytest.raises(TypeError, match="no Attributes entry for model"):
        attribute_docs(Undocumented)


def test_token_map_of_one_pair() -> None:
    assert parse_token_map("42=-100") == {42: -100.0}
