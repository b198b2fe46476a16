"""Processes that tests start are forked off one that has imported torch, which takes each of them more than a second.

``forked_processes`` has ``subprocess`` hand the commands that ``_can_fork`` names to that process. It forks twice, so
that what it has forked becomes a child of the one that asks, with the arguments, the environment, the folder and the
standard streams of the command, and with such a process of its own, for what it starts in turn. Other commands are
started as ever, and so are these in an environment in which Python or torch might have imported something else, as
those of tests/e2e/test_hanging.py, or that has a ``sitecustomize`` of its own.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ENGINE, RANK = "parhelion.engine.process", "parhelion.engine.ranks.process"
SERVE = ("parhelion.cli", "serve")

READ_LATE = frozenset(
    {
        "GLOO_SOCKET_IFNAME",
        "GOMP_SPINCOUNT",
        "HELION_INTERPRET",
        "KMP_DUPLICATE_LIB_OK",
        "KMP_INIT_AT_FORK",
        "NCCL_SOCKET_IFNAME",
        "PARHELION_FILLED_WEIGHTS",
        "PARHELION_HOME",
        "PYTEST_CURRENT_TEST",
        "TMPDIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "VLLM_CACHE_ROOT",
        "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR",
    }
)
"""Variables that are not read while these modules are imported. On GOMP's depends how long a thread waits; KMP's, which
scikit-learn leaves behind, and the compilers' concern what is not imported yet, or never is."""

_REPOSITORY = Path(__file__).parents[1]
_SCRIPTS = tuple(str(_REPOSITORY / folder) + os.sep for folder in ("benchmarks", "parhelion/bench"))
_INSTALLED = (sys.prefix, sys.base_prefix)
_PARAMETERS = inspect.signature(subprocess.Popen._execute_child)
_PATH = tuple(sys.path[1:])
_PR_SET_CHILD_SUBREAPER = 36
_MOST_BYTES = 1 << 18
_ROOM = "-" * 2000
"""An argument in whose place those of a forked process stand, for whoever lists processes."""


def _can_fork(words: Sequence[str]) -> bool:
    """Whether a command is an engine, a rank, a server or a benchmark, all of which import torch or start who does."""
    if len(words) < 3 or words[0] != sys.executable or sum(map(len, words)) + len(words) > len(_ROOM):
        return False
    if words[1] == "-m":
        return words[2] in (ENGINE, RANK) or words[2].startswith("parhelion.bench.") or tuple(words[2:4]) == SERVE
    return words[1].startswith(_SCRIPTS)


@contextmanager
def forked_processes() -> Iterator[None]:
    """``subprocess`` forks what can be forked meanwhile; on Linux, where a process can inherit another's children."""
    if sys.platform != "linux":
        yield
        return
    environment = dict(os.environ)
    with ExitStack() as stack, _popen(environment, cache(lambda: stack.enter_context(_source()))):
        yield


@contextmanager
def _source() -> Iterator[socket.socket]:
    """A socket to the process off which others are forked."""
    requests, other = _pair()
    command = [sys.executable, "-m", "tests.forked_processes", str(other.fileno()), _ROOM]
    with requests, subprocess.Popen(command, cwd=_REPOSITORY, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL):
        other.close()
        yield requests
        # Whereupon it ends.
        requests.close()


@contextmanager
def _popen(environment: dict[str, str], source: Callable[[], socket.socket]) -> Iterator[None]:
    """Have ``subprocess`` ask a source, which has imported what it has in this environment."""
    before = subprocess.Popen
    lock = threading.Lock()

    class Forked(before):
        def _execute_child(self, *arguments: Any) -> None:
            asked = _PARAMETERS.bind(self, *arguments).arguments
            command, given = asked["args"], dict(os.environ) if asked["env"] is None else asked["env"]
            if not _is_plain(asked) or not _can_fork(command) or _read_early(given) != _read_early(environment):
                super()._execute_child(*arguments)
                return
            ends = (asked["p2cread"], asked["c2pwrite"], asked["errwrite"])
            streams = [end if end >= 0 else own for own, end in enumerate(ends)]
            request = json.dumps([command, given, os.getcwd(), asked["start_new_session"]]).encode()
            with lock, _inheriting():
                socket.send_fds(source(), [request], streams)
                answer = source().recv(_MOST_BYTES)
            assert answer, "the process that forks others has ended"
            self.pid = int(answer)
            self._child_created = True
            pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
            self._close_pipe_fds(*(asked[name] for name in pipes))

    subprocess.Popen = Forked
    try:
        yield
    finally:
        subprocess.Popen = before


def _is_plain(asked: dict[str, Any]) -> bool:
    others = ("preexec_fn", "pass_fds", "cwd", "shell", "executable")
    command = asked["args"]
    is_words = isinstance(command, (list, tuple)) and all(isinstance(word, str) for word in command)
    return is_words and not any(asked[name] for name in others)


def _read_early(environment: dict[str, str]) -> dict[str, object]:
    """Variables, and the folders of modules but those that everybody has and those of stand-ins."""
    others = [each for each in _own_folders(environment) if not _is_of_stand_ins(each)]
    fixed = {name: value for name, value in environment.items() if name not in READ_LATE}
    return {**fixed, "PYTHONPATH": others}


def _own_folders(environment: dict[str, str]) -> list[str]:
    """The folders of modules but those that everybody has."""
    folders = filter(os.path.isdir, environment.get("PYTHONPATH", "").split(os.pathsep))
    return [each for each in folders if each != str(_REPOSITORY) and not each.startswith(_INSTALLED)]


def _is_of_stand_ins(folder: str) -> bool:
    """Whether none of its modules has been imported by then, be it another of the same name."""
    names = {name.partition(".")[0] for name in os.listdir(folder)}
    return "sitecustomize" not in names and not any(name.isidentifier() and _is_installed(name) for name in names)


@cache
def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@contextmanager
def _inheriting() -> Iterator[None]:
    """Grandchildren whose parents end become children of this process meanwhile."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _serve(requests: socket.socket) -> None:
    """Fork what is asked for, until nobody can ask any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        request, streams, _, _ = socket.recv_fds(requests, _MOST_BYTES, 3)
        if not request:
            return
        found, told = os.pipe()
        between = os.fork()
        if between == 0:
            if os.fork() == 0:
                _become(*json.loads(request), streams, told)
            os._exit(0)
        # Only after it is the other's child.
        os.waitpid(between, 0)
        os.close(told)
        requests.send(os.read(found, 100))
        for each in (found, *streams):
            os.close(each)


def _become(
    command: list[str], environment: dict[str, str], folder: str, own_session: bool, streams: list[int], told: int
) -> NoReturn:
    """Run a command in this process, as a Python that is started for it would."""
    status = 1
    try:
        if own_session:
            os.setsid()
        os.write(told, str(os.getpid()).encode())
        for own, given in enumerate(streams):
            os.dup2(given, own)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        sys.path[1:] = [*filter(_is_of_stand_ins, _own_folders(environment)), *_PATH]
        beneath = _source_beneath()
        with _popen(environment, lambda: beneath):
            _show_command(command)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if command[1] == "-m":
                sys.path[0], sys.argv = folder, command[2:]
                sys.modules.pop(command[2], None)
                runpy.run_module(command[2], run_name="__main__", alter_sys=True)
            else:
                sys.path[0], sys.argv = str(Path(command[1]).parent), command[1:]
                runpy.run_path(command[1], run_name="__main__")
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _source_beneath() -> socket.socket:
    """A socket to that of what this process will start; now, while it has but one thread."""
    requests, other = _pair()
    if os.fork() == 0:
        requests.close()
        with open(os.devnull, "r+") as nothing:
            for own in range(3):
                os.dup2(nothing.fileno(), own)
        _serve(other)
        os._exit(0)
    other.close()
    return requests


def _show_command(command: list[str]) -> None:
    """Let this process be listed with another command line than it was started with."""
    start, end = map(int, Path("/proc/self/stat").read_text().rpartition(") ")[2].split()[45:47])
    ctypes.memmove(start, b"\0".join(map(os.fsencode, command)).ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    for module in (ENGINE, RANK):
        importlib.import_module(module)
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
