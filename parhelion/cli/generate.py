"""``parhelion generate``: complete prompts without a server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from parhelion.cli.load import open_llm
from parhelion.cli.options import record_options
from parhelion.cli.output import count_bar, print_json
from parhelion.config import EngineConfig
from parhelion.types import RequestOutput, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence


@record_options()
def generate(
    sampling: SamplingParams,
    engine: EngineConfig,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="A prompt; may be repeated. Without it: stdin, one a line."),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="Print a JSON document with ids and log-probabilities.")
    ] = False,
) -> None:
    """Complete prompts, all in one batch, and print the text.

    Example: [cyan]parhelion generate smollm2-135m --prompt "The sky is" --max-tokens 32 --temperature 0[/]
    """
    prompts = prompt or read_prompts()
    with open_llm(engine) as llm, count_bar("generating") as bar:
        outputs = llm.generate(prompts, sampling, progress=bar)
    if json_:
        print_json(outputs)
    else:
        _print_texts(outputs)


def read_prompts() -> list[str]:
    """One prompt a line of stdin, empty lines left out.

    Raises:
        typer.BadParameter: there is none.
    """
    if sys.stdin.isatty():
        raise typer.BadParameter("give --prompt TEXT, or prompts on stdin, one a line", param_hint="--prompt")
    prompts = [line.rstrip("\r\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise typer.BadParameter(
            "stdin holds no prompt; give --prompt TEXT, or one prompt a line", param_hint="--prompt"
        )
    return prompts


def _print_texts(outputs: Sequence[RequestOutput]) -> None:
    """The bare text of a single completion; with several, each under a line that says which it is."""
    if len(outputs) == 1 and len(outputs[0].outputs) == 1:
        print(outputs[0].outputs[0].text)
        return
    for number, output in enumerate(outputs):
        for completion in output.outputs:
            part = f".{completion.index}" if len(output.outputs) > 1 else ""
            print(f"--- {number}{part} {output.prompt!r}\n{completion.text}")
