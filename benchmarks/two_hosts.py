"""Two hosts on one machine: a model that they share, a link that is cut in mid-stream, or a process of Ray's that is
killed, and what clients see of it.

    sudo PYTHONPATH=. python benchmarks/two_hosts.py [--way tp] [--strike link] [--down SECONDS] [--output FILE]

Needs root, Ray, `ip` (Debian: apt-get install iproute2), `unshare` (util-linux) and `pgrep` (procps). Each host is a
network namespace with an address, a name and processes of its own; a bridge in a third namespace joins them, and
clients sit there. Ray's head and the server run on one host, and a Ray node with room for one rank on the other.

It sees that two ranks say what one process says, cuts the other host off while a client reads a stream (packets vanish,
and nothing tells that they do), joins it again, and sees that all processes and places are gone at the end. With
``--strike`` the link stays, and instead the raylet of the other host (``raylet``), that of the server's host
(``head``), or the cluster's control store (``gcs``) is killed; whoever keeps Ray running starts it again. All that it
makes is in the namespaces, and goes with them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

RESULT = Path(__file__).parent / "results" / "two_hosts.json"
NETWORK = "10.77.0"
SERVER, WORKER = f"{NETWORK}.2", f"{NETWORK}.3"
RAY_PORT, PORT = 6379, 8000
URL = f"http://{SERVER}:{PORT}"
PROMPTS = ["Once upon a time", "abc", "The quick brown fox jumps over"]
ERROR_WITHIN_S = 12.0
"""When a client hears of a host that was cut off: it is missed for 8 s at most, and the rest is the error's way."""
OPTIONS = [
    "--dtype",
    "float32",
    "--device",
    "cpu",
    "--threads",
    "1",
    "--kv-cache-memory",
    "64MiB",
    "--max-num-seqs",
    "8",
]


class Host:
    """A host of its own, as far as processes can tell: network, name, process ids, shared memory, and Ray's files.

    Args:
        name: of the host, and of the network namespace that has been made for it.
    """

    def __init__(self, name: str) -> None:
        mounts = f"mount -t tmpfs tmpfs {os.environ['RAY_TMPDIR']} && mount -t tmpfs -o size=512m tmpfs /dev/shm"
        # The shell is the first process of the host, and when it ends all others do.
        script = f"{mounts} && hostname {name} && echo ready && exec sleep infinity"
        command = ["ip", "netns", "exec", name, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child"]
        self._unshare = subprocess.Popen(
            [*command, "--mount-proc", "sh", "-c", script], stdout=subprocess.PIPE, text=True
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != "ready\n":
            raise SystemExit(f"host {name} could not be made")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self._first = children[0]

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Run a command on the host."""
        enter = ["nsenter", "-t", self._first, "-n", "-m", "-u", "-p", "--"]
        return subprocess.Popen([*enter, *command], text=True, **options)

    def output(self, *command: str) -> str:
        """What a command prints there."""
        process = self.start(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        printed: str
        printed, said = process.communicate(timeout=60)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}: {said}")
        return printed

    def processes(self, word: str) -> list[str]:
        """The commands that run there and have a word in them."""
        return [line for line in self.output("ps", "ax", "-o", "args").splitlines() if word in line]

    def pids(self, word: str) -> list[str]:
        """The processes there that have a word in the first of their arguments, or are of that Python module."""
        lines = [line.split() for line in self.output("ps", "ax", "-o", "pid,args").splitlines()]
        return [words[0] for words in lines if any(word in each for each in words[1:4])]

    def close(self) -> None:
        """End the host and all of its processes."""
        self._unshare.kill()
        self._unshare.wait()


def write_model(folder: Path) -> None:
    """A small Llama with random weights, and a tokenizer with a token for every byte."""
    import torch
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=258,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32768,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<|begin|>": 0, "<|end|>": 1, **{symbol: index + 2 for index, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def texts_of_one_process(folder: Path) -> list[str]:
    """What the model says where one process has all of it."""
    from parhelion import LLM, SamplingParams

    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    with LLM(str(folder), dtype="float32", device="cpu", threads=1, kv_cache_memory=64 << 20) as llm:
        return [output.outputs[0].text for output in llm.generate(PROMPTS, params)]


def complete(prompt: str) -> str:
    """What the server says."""
    import httpx

    body = {"model": "model", "prompt": prompt, "temperature": 0, "max_tokens": 64, "ignore_eos": True}
    answer = httpx.post(f"{URL}/v1/completions", json=body, timeout=30)
    answer.raise_for_status()
    text: str = answer.json()["choices"][0]["text"]
    return text


def health() -> tuple[int, dict[str, Any]]:
    """Status and body."""
    import httpx

    answer = httpx.get(f"{URL}/health", timeout=5)
    return answer.status_code, answer.json()


def strike_in_mid_stream(strike: Callable[[], None]) -> dict[str, Any]:
    """Let something happen after a part of a stream has come; what came then."""
    import httpx

    body = {
        "model": "model",
        "prompt": "go on",
        "temperature": 0,
        "max_tokens": 20000,
        "ignore_eos": True,
        "stream": True,
    }
    events, struck_at, heard_at = 0, 0.0, 0.0
    with httpx.stream("POST", f"{URL}/v1/completions", json=body, timeout=60) as answer:
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            events += 1
            if events == 50:
                strike()
                struck_at = time.monotonic()
            message = json.loads(line.removeprefix("data: ")) if line != "data: [DONE]" else {}
            if "error" in message:
                status, body_of_health = health()
                return {
                    "events before the error": events - 1,
                    "error after s": round(time.monotonic() - struck_at, 2),
                    "silence before the error s": round(time.monotonic() - heard_at, 2),
                    "error": message["error"],
                    "health": [status, body_of_health],
                }
            heard_at = time.monotonic()
    raise SystemExit("the stream ended without an error")


def show(log: IO[str]) -> None:
    """What the server has said, where something went wrong."""
    log.seek(0)
    print(log.read(), file=sys.stderr)


def ip(*arguments: str) -> None:
    """Run iproute2's command."""
    subprocess.run(["ip", *arguments], check=True)


def check(holds: bool, what: str) -> None:
    """End with a message unless it holds."""
    if not holds:
        raise SystemExit(f"two hosts: {what}")
    print(f"ok: {what}", flush=True)


def until(holds: Any, seconds: float, what: str) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with contextlib.suppress(Exception):
            if holds():
                return round(time.monotonic() - began, 2)
        time.sleep(0.2)
    raise SystemExit(f"two hosts: {what} is not so after {seconds:g} s")


def ray_start(*options: str) -> str:
    """The command of a Ray node with room for one rank, started again whenever it ends."""
    node = "ray start --num-cpus 1 --object-store-memory 100000000 --disable-usage-stats --block"
    return f"while true; do {node} {' '.join(options)} >$RAY_TMPDIR/log 2>&1; sleep 1; done"


PLACES = """
import ray
from ray.util import placement_group_table
ray.init(address="auto", log_to_driver=False)
print(sum(group["state"] != "REMOVED" for group in placement_group_table().values()))
"""


def trial(folder: Path, names: list[str], way: str, what: str, down_s: float) -> dict[str, Any]:
    """The whole trial, from within the namespace of the clients."""
    expected = texts_of_one_process(folder)
    with contextlib.ExitStack() as ending:
        server_host, worker_host = map(Host, names[:2])
        ending.callback(worker_host.close)
        ending.callback(server_host.close)
        shell = ["sh", "-c"]
        head = f"--head --node-ip-address {SERVER} --port {RAY_PORT} --include-dashboard false"
        server_host.start(*shell, ray_start(head))
        worker_host.start(*shell, ray_start(f"--address {SERVER}:{RAY_PORT} --node-ip-address {WORKER}"))
        began = time.monotonic()
        command = [sys.executable, "-m", "parhelion.cli", "serve", str(folder), f"--{way}", "2", "--executor", "ray"]
        command += ["--host", SERVER, "--port", str(PORT), "--ray-address", f"{SERVER}:{RAY_PORT}", *OPTIONS]
        until(lambda: has_joined(server_host) and has_joined(worker_host), 40, "two nodes are in the cluster")
        cluster_s = round(time.monotonic() - began, 2)
        log = ending.enter_context((folder / "server.log").open("w+"))
        ending.push(lambda kind, *_: show(log) if kind is not None else None)
        server = server_host.start(*command, stdout=subprocess.DEVNULL, stderr=log)
        start_s = until(lambda: health()[0] == 200, 60, "the server answers")
        check(len(worker_host.processes("ranks.process")) == 1, "a rank runs on the other host")
        check([complete(prompt) for prompt in PROMPTS] == expected, "two hosts say what one process says")
        (rank,) = worker_host.pids("ranks.process")
        seen = strike_in_mid_stream(lambda: strike(what, server_host, worker_host))
        struck_at = time.monotonic() - seen["error after s"]
        # A stream goes on as long as Ray lets its ranks live.
        silent_s = seen["silence before the error s"]
        said = f"an error came {seen['error after s']} s after the strike, {silent_s} s after the last token"
        check(silent_s <= ERROR_WITHIN_S, said)
        check(seen["health"][0] == 503, f"/health says {seen['health'][1]}")
        until(lambda: rank not in worker_host.pids("ranks.process"), 20, "the rank on the other host has ended")
        down = {}
        if what == "link":
            time.sleep(max(0.0, struck_at + down_s - time.monotonic()))
            ip("link", "set", "worker", "up")
            down = {"link down s": down_s}
        again_s = until(lambda: health()[0] == 200, 90, "the server answers again")
        check(complete(PROMPTS[0]) == expected[0], f"{again_s} s later it answers again, and the same")
        ended_s = time.monotonic()
        server_pid = server_host.output("pgrep", "-f", "-o", "parhelion.cli serve").strip()
        server_host.output("kill", "-TERM", server_pid)
        server.wait(20)
        ended_s = round(time.monotonic() - ended_s, 2)
        check(server.returncode == 0, "the server ends with status 0")
        hosts = (server_host, worker_host)
        modules = ("parhelion.engine", "parhelion.distributed")
        until(lambda: not any(host.processes(each) for host in hosts for each in modules), 5, "no process is left")
        check(server_host.output(sys.executable, "-c", PLACES).split()[-1:] == ["0"], "no placement group is left")
        return {
            "cluster s": cluster_s,
            "server ready s": start_s,
            **seen,
            **down,
            "answers again after s": again_s,
            "server ended s": ended_s,
        }


def strike(what: str, server_host: Host, worker_host: Host) -> None:
    """Cut the link, or kill one of Ray's processes."""
    if what == "link":
        ip("link", "set", "worker", "down")
        return
    host = worker_host if what == "raylet" else server_host
    name = "gcs/gcs_server" if what == "gcs" else "raylet/raylet"
    (victim,) = host.pids(name)
    host.output("kill", "-KILL", victim)


def has_joined(host: Host) -> bool:
    """Ray runs on the host."""
    return "Ray runtime started" in host.output("cat", f"{os.environ['RAY_TMPDIR']}/log")


@contextlib.contextmanager
def networks(names: list[str]) -> Iterator[None]:
    """Namespaces of two hosts and one of clients, joined by a bridge in the last."""
    *hosts, clients = names
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", clients, "link", "add", "bridge", "type", "bridge")
        ip("-n", clients, "address", "add", f"{NETWORK}.1/24", "dev", "bridge")
        ip("-n", clients, "link", "set", "bridge", "up")
        for name, end, address in zip(hosts, ("server", "worker"), (SERVER, WORKER), strict=True):
            ip("-n", clients, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("-n", clients, "link", "set", end, "master", "bridge", "up")
            ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--way", default="tp", choices=["tp", "pp"], help="how the two ranks divide the model")
    parser.add_argument("--strike", default="link", choices=["link", "raylet", "head", "gcs"], help="what is struck")
    parser.add_argument("--down", type=float, default=15.0, help="seconds that the link is cut")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--inside", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        folder, *names = options.inside
        result = trial(Path(folder), names, options.way, options.strike, options.down)
        described = {
            "command": "python benchmarks/two_hosts.py"
            + (f" --way {options.way}" if options.way != "tp" else "")
            + (f" --strike {options.strike}" if options.strike != "link" else "")
            + (f" --down {options.down:g}" if options.down != 15.0 else ""),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
            "versions": {name: version(name) for name in ("parhelion", "torch", "ray", "pyzmq")},
            "date": date.today().isoformat(),
            **result,
        }
        options.output.write_text(json.dumps(described, indent=1) + "\n")
        return
    if os.geteuid() != 0:
        raise SystemExit("two hosts: namespaces need root")
    for tool, package in (
        ("ip", "iproute2"),
        ("unshare", "util-linux"),
        ("nsenter", "util-linux"),
        ("pgrep", "procps"),
    ):
        if shutil.which(tool) is None:
            raise SystemExit(f"two hosts: there is no {tool}; Debian has it in the package {package}")
    names = [f"ph{os.getpid()}-{end}" for end in ("server", "worker", "clients")]
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as folder, networks(names):
        model, ray_files = Path(folder) / "model", Path(folder) / "ray"
        ray_files.mkdir()
        write_model(model)
        inside = [sys.executable, __file__, "--inside", str(model), *names, "--way", options.way]
        inside += ["--strike", options.strike, "--down", str(options.down)]
        # Whoever knows the token may use the cluster: this trial and nobody else.
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": str(ray_files)}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = {**os.environ, **own, "PATH": path, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
        process = subprocess.Popen(
            ["ip", "netns", "exec", names[2], *inside, "--output", str(options.output.absolute())], env=environment
        )
        try:
            status = process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            status = process.wait()
    raise SystemExit(status)


if __name__ == "__main__":
    main()
