"""``parhelion chat``: talk with a model in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from parhelion.cli.load import open_llm
from parhelion.cli.options import record_options
from parhelion.cli.output import print_note
from parhelion.config import EngineConfig
from parhelion.types import RequestOutput, SamplingParams

HELP = "/exit or Ctrl-D ends, /reset forgets what was said, Ctrl-C stops an answer."

Message = dict[str, str]
Answer = Callable[[list[Message]], Iterator[RequestOutput]]


@record_options(
    exclude=("n", "logprobs", "prompt_logprobs", "include_stop_str_in_output", "skip_special_tokens"),
    defaults={"max_tokens": None, "temperature": 0.7},
)
def chat(
    sampling: SamplingParams,
    engine: EngineConfig,
    system: Annotated[str | None, typer.Option("--system", help="The system message of the conversation.")] = None,
) -> None:
    """Talk with a model: answers stream in, and the conversation is remembered.

    Example: [cyan]parhelion chat smollm2-135m --system "You answer briefly."[/]
    """
    with open_llm(engine) as llm:

        def answer(messages: list[Message]) -> Iterator[RequestOutput]:
            return llm.stream(llm.chat_prompt(messages), sampling)

        print_note(HELP)
        converse(answer, system)


def converse(answer: Answer, system: str | None) -> None:
    """Read lines and print answers until the user leaves."""
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while (line := _read_line()) is not None:
        if line == "/exit":
            return
        if line == "/reset":
            messages = list(opening)
            print_note("forgotten.")
        elif line.startswith("/"):
            print_note(f"{line.split()[0]} is no command. {HELP}")
        elif line:
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": print_answer(answer(messages))})


def print_answer(outputs: Iterator[RequestOutput]) -> str:
    """Print a stream of cumulative outputs as it comes; its whole text, or as much as came before Ctrl-C."""
    text = ""
    try:
        for output in outputs:
            so_far = output.outputs[0].text
            print(so_far[len(text) :], end="", flush=True)
            text = so_far
    except KeyboardInterrupt:
        print(" [stopped]", end="")
    finally:
        # Closing the generator is what aborts the request.
        close = getattr(outputs, "close", None)
        if close is not None:
            close()
    print()
    return text


def _read_line() -> str | None:
    """The next line the user types; None at the end of input. Ctrl-C at the prompt clears the line."""
    while True:
        try:
            return input("> ").strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return None
