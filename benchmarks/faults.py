"""Processes of a server are killed, stopped or left hanging under load, one at a time: what clients get, what is left,
and what comes back.

    PYTHONPATH=. python benchmarks/faults.py [--only KIND,...] [--rounds N] [--model tiny] [--length N] [--output FILE]

Each round starts a server, lets eight clients ask for greedy float32 texts that are known, half of them as streams,
ends one process at a random moment, and looks at everything until the server has ended as well. The bars:

- whoever had asked, or asks once more afterwards, has an answer or an error within 30 s;
- a finished text is that of an undisturbed run, and a cut one is a prefix of it;
- where other replicas serve, who asked for an answer in one piece gets it;
- what the documents say starts again does so, and answers the same; anything else says that it is dead (503);
- 30 s after the server has ended, nothing of its session lives, and no shared memory, semaphore or file is left.

The result is written after each round; with ``--keep``, rounds of other kinds that it has already stay there. The
status is 1 if a bar was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import httpx
import psutil

sys.path.insert(0, str(Path(__file__).parent))

from fault_clients import Load, Question, ask_all
from fault_kinds import KINDS, Kind, kinds_named
from fault_leftovers import ENGINE, HANGING, RANK, SharedMemory, is_alive, processes_of, running, until
from fault_ray import Cluster, running_cluster
from fault_tables import fault_lines
from two_hosts import write_model

from parhelion import LLM, SamplingParams
from parhelion.bench.machine import describe_circumstances
from parhelion.bench.server_process import ServerProcess, running_server
from parhelion.models.resolve import resolve_model

RESULT = Path(__file__).parent / "results" / "faults.json"
WITHIN_S = 30.0
"""The bar of answers and of leftovers."""

RECOVERED_WITHIN_S = 60.0
"""The bar of what starts again, from the kill."""

LOADED_WITHIN_S = 30.0
"""How long the streams may take to begin."""

PROMPTS = [f"{word}, {count} times over" for count, word in enumerate(("once", "twice", "go on", "the sea") * 2)]
OPTIONS = ("--dtype", "float32", "--device", "cpu", "--threads", "1", "--kv-cache-memory", "64MiB")
SMOLLM2, TINY = "smollm2-135m", "tiny"
LENGTHS = {TINY: 600, SMOLLM2: 48}
"""Tokens of an answer: some seconds of work for eight clients at once."""


@dataclass
class Row:
    """What was seen in a round.

    Attributes:
        process: that was ended, and of what.
        struck_after_s: after the streams had begun.
        last_answer_s: from the kill, of those requests that were under way.
        got: how often clients got what.
        settled_s: from the kill until all serve again, or the server says that it is dead and nothing lives behind it,
            or nothing of it is left; None if a bar was missed.
        exit_status: of the server, after SIGTERM unless it was the one that was killed.
        gone_s: from its end until nothing of it was left.
        left: what was left in spite of that.
        missed: the bars that were missed.
    """

    kind: str
    round: int
    model: str
    signal: str
    process: int
    struck_after_s: float
    last_answer_s: float = 0.0
    got: dict[str, int] = field(default_factory=dict)
    settled_s: float | None = None
    exit_status: int | None = None
    gone_s: float | None = None
    left: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)


class Setting:
    """What rounds share: models with what they say, and a Ray cluster; made when they are first asked for.

    Args:
        ending: ends all of it.
        length: tokens of an answer; None: those of ``LENGTHS``.
    """

    def __init__(self, ending: contextlib.ExitStack, length: int | None) -> None:
        self._ending = ending
        self._length = length
        self._questions: dict[str, list[Question]] = {}
        self._paths: dict[str, str] = {}
        self._cluster: Cluster | None = None

    def path(self, model: str) -> str:
        """What to serve; ``tiny`` is written."""
        if model not in self._paths:
            self._paths[model] = self._ending.enter_context(model_named(model))
        return self._paths[model]

    def questions(self, model: str) -> list[Question]:
        """One for each client, and what the model says where nothing disturbs it: one process, one at a time."""
        if model not in self._questions:
            length = self._length or LENGTHS[model]
            params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
            with LLM(self.path(model), dtype="float32", device="cpu", threads=1, kv_cache_memory=64 << 20) as llm:
                texts = [llm.generate(prompt, params)[0].outputs[0].text for prompt in PROMPTS]
            asked = zip(PROMPTS, texts, strict=True)
            self._questions[model] = [Question(prompt, length, text) for prompt, text in asked]
        return self._questions[model]

    def cluster(self) -> Cluster:
        """Ray's."""
        if self._cluster is None:
            self._cluster = self._ending.enter_context(running_cluster())
        return self._cluster


class Round:
    """One round: a server, from its start to the last of its processes.

    Args:
        kind: who is ended, and how.
        setting: see ``Setting``.
        model: to serve.
        number: of the round; it makes the moment.
    """

    def __init__(self, kind: Kind, setting: Setting, model: str, number: int) -> None:
        self._kind = kind
        self._path, self._questions = setting.path(model), setting.questions(model)
        self._cluster = setting.cluster() if kind.needs_ray else None
        moment = random.Random(f"{kind.name} {number}").random()
        self.row = Row(kind.name, number, model, kind.signal.name, 0, round(moment, 2))

    def run(self, log: IO[bytes]) -> None:
        """All of it. ``log`` takes what the server says."""
        shared = SharedMemory.now()
        # The paths of sockets must be short.
        with tempfile.TemporaryDirectory(prefix="faults-") as folder:
            options = (*OPTIONS, *self._kind.options)
            if self._cluster is not None:
                options = (*options, "--ray-address", self._cluster.address)
            searched = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
            environment = {"TMPDIR": folder, "PYTHONPATH": os.pathsep.join([str(HANGING), *searched])}
            with running_server(self._path, options, environment=environment, log=log, own_session=True) as server:
                assert server.process is not None
                self._session = server.process.pid
                try:
                    killed_at = self._strike_and_look(server)
                    self._look_for_leftovers(shared, Path(folder), killed_at)
                finally:
                    for process in self._processes():
                        process.kill()

    def _processes(self) -> list[psutil.Process]:
        """Everything of the server that lives."""
        return processes_of(self._session) + (self._cluster.ranks if self._cluster is not None else [])

    def _counts(self) -> tuple[int, int]:
        """Engines and other ranks that live."""
        processes = self._processes()
        return len(running(ENGINE, processes)), len(running(RANK, processes))

    def _strike_and_look(self, server: ServerProcess) -> float:
        """From the load to the server's end; returns when it struck."""
        assert server.process is not None
        kind, row, questions = self._kind, self.row, self._questions
        before = self._counts()
        victim = kind.choose(self._processes(), self._session)
        row.process = victim.pid
        load = Load(server.url, server.model, questions)
        killed_at = asyncio.run(self._under_load(load, victim))
        self._judge(load, killed_at)
        if kind.then == "ends":
            row.exit_status = self._wait(server)
            return killed_at
        if kind.then == "is dead":
            alone = [psutil.Process(self._session)]
            self._expect(lambda: health(server.url) == (503, "engine_dead"), WITHIN_S, "/health says engine_dead")
            self._expect(lambda: self._processes() == alone, WITHIN_S, "the processes behind the server have ended")
            self._settle(killed_at)
        else:
            self._expect(lambda: has_recovered(server.url), RECOVERED_WITHIN_S, "all serve again")
            self._settle(killed_at)
            row.missed += asyncio.run(ask_all(server.url, server.model, questions))
            self._expect(lambda: self._counts() == before, WITHIN_S, f"engines and ranks are {before} as before")
            self._expect(lambda: not is_alive(victim), WITHIN_S, "the process that was struck has ended")
        server.process.send_signal(signal.SIGTERM)
        row.exit_status = self._wait(server)
        if row.exit_status != 0:
            row.missed.append(f"the server ended with status {row.exit_status} after SIGTERM")
        return killed_at

    def _settle(self, killed_at: float) -> None:
        if not self.row.missed:
            self.row.settled_s = round(time.monotonic() - killed_at, 2)

    async def _under_load(self, load: Load, victim: psutil.Process) -> float:
        """Let clients ask, strike, and wait for what they get; returns when it struck."""
        clients = [asyncio.create_task(load.run(number)) for number in range(len(load.questions))]
        deadline = time.monotonic() + LOADED_WITHIN_S
        while not load.has_begun:
            await asyncio.sleep(0.01)
            if time.monotonic() > deadline:
                raise TimeoutError(f"no streams after {LOADED_WITHIN_S:g} s")
        await asyncio.sleep(self.row.struck_after_s)
        killed_at = load.stop_after_one_more()
        victim.send_signal(self._kind.signal)
        done, late = await asyncio.wait(clients, timeout=2 * WITHIN_S)
        for client in late:
            client.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for client in done:
            client.result()
        return killed_at

    def _judge(self, load: Load, killed_at: float) -> None:
        """What clients got, beside what they should."""
        row, kind = self.row, self._kind
        after = [answer for answer in load.answers if answer.ended > killed_at]
        row.got = dict(Counter(answer.outcome for answer in after))
        row.last_answer_s = round(max(each.ended - killed_at for each in after if each.began < killed_at), 2)
        waits = [answer.ended - max(answer.began, killed_at) for answer in after]
        waits += [time.monotonic() - max(began, killed_at) for began in load.under_way.values()]
        if (late := sum(wait > WITHIN_S for wait in waits)) > 0:
            row.missed.append(f"{late} clients waited for more than {WITHIN_S:g} s")
        row.missed += [answer.problem for answer in load.answers if answer.problem is not None]
        row.missed += [f"{answer.outcome} before the kill" for answer in load.answers if not _fine(answer, killed_at)]
        for answer in after:
            allowed = kind.outcomes if answer.streamed else kind.outcomes_in_one_piece
            if answer.outcome not in allowed:
                asked = "a stream" if answer.streamed else "one piece"
                row.missed.append(f"a client that asked for {asked} got {answer.outcome}")

    def _expect(self, holds: Callable[[], bool], seconds: float, what: str) -> None:
        if until(holds, seconds) is None:
            self.row.missed.append(f"not within {seconds:g} s: {what}")

    def _wait(self, server: ServerProcess) -> int | None:
        until(lambda: server.exit_status() is not None, WITHIN_S)
        return server.exit_status()

    def _look_for_leftovers(self, shared: SharedMemory, folder: Path, killed_at: float) -> None:
        def left() -> list[str]:
            processes = [f"process {each.pid}: {' '.join(each.cmdline())}" for each in self._processes()]
            return [*processes, *shared.leaked(), *(f"file {path.name}" for path in folder.iterdir())]

        def is_gone() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.row.left = left()
                return not self.row.left
            return False

        gone_s = until(is_gone, WITHIN_S)
        self.row.gone_s = None if gone_s is None else round(gone_s, 2)
        self.row.missed += [f"left behind: {each}" for each in self.row.left]
        if self._kind.then == "ends":
            self._settle(killed_at)


def one_round(kind: Kind, setting: Setting, model: str, number: int) -> Row:
    """A round; what its server has said is shown if a bar was missed."""
    trial = Round(kind, setting, model, number)
    with tempfile.TemporaryFile() as log:
        try:
            trial.run(log)
        except Exception as error:
            trial.row.missed.append(f"{type(error).__name__}: {error}")
        if trial.row.missed:
            log.seek(0)
            print(log.read().decode(errors="replace"), file=sys.stderr)
    return trial.row


def _fine(answer: Any, killed_at: float) -> bool:
    return answer.ended > killed_at or answer.outcome == "200"


def health(url: str) -> tuple[int, str]:
    """Status, and what the server says of itself; 0 if it does not answer."""
    with contextlib.suppress(httpx.TransportError):
        answer = httpx.get(f"{url}/health", timeout=5)
        return answer.status_code, answer.json()["status"]
    return 0, ""


def has_recovered(url: str) -> bool:
    """Some replica has been started again, and all serve."""
    with contextlib.suppress(httpx.TransportError):
        body = httpx.get(f"{url}/health", timeout=5).json()
        return body["status"] == "ok" and any(each["restarts"] for each in body["replicas"])
    return False


@contextlib.contextmanager
def model_named(name: str) -> Iterator[str]:
    """The model to serve; ``tiny`` is written first."""
    if name != "tiny":
        yield str(resolve_model(name))
        return
    with tempfile.TemporaryDirectory(prefix="faults-model-") as folder:
        write_model(Path(folder))
        yield folder


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(kind.name for kind in KINDS), help="kinds, with commas between")
    parser.add_argument("--rounds", type=int, help="of each kind; left out, those of the table")
    parser.add_argument("--model", choices=LENGTHS, help="left out, SmolLM2 where its heads divide, else the tiny one")
    parser.add_argument("--length", type=int, help="tokens of an answer")
    parser.add_argument("--keep", action="store_true", help="add to what the output has of other kinds")
    parser.add_argument("--output", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """All rounds; 1 if one of them missed a bar."""
    options = parse(arguments)
    kinds = kinds_named(options.only.split(","))
    rows: list[dict[str, Any]] = []
    circumstances = asdict(describe_circumstances())
    if options.keep:
        before = json.loads(options.output.read_text())
        rows = [row for row in before["rounds"] if row["kind"] not in {kind.name for kind in kinds}]
        circumstances["command"] = f"{before['circumstances']['command']}; {circumstances['command']}"
    with contextlib.ExitStack() as ending:
        setting = Setting(ending, options.length)
        for kind in kinds:
            # SmolLM2 has nine heads.
            model = options.model or (TINY if "--tp" in kind.options else SMOLLM2)
            for number in range(options.rounds or kind.rounds):
                rows.append(asdict(one_round(kind, setting, model, number)))
                print(json.dumps(rows[-1]), flush=True)
                options.output.write_text(json.dumps({"circumstances": circumstances, "rounds": rows}, indent=1) + "\n")
    print("\n".join(fault_lines(rows)))
    return int(any(row["missed"] for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
