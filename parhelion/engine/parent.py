"""Processes of an engine end with whoever started them, whatever they are doing at that moment."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

PARENT_CHECK_S = 0.5
"""How often a process looks whether the one that started it still lives."""

_ENDING_CHECK_S = 0.02


def end_with_parent(parent: int, address: str) -> None:
    """Let a thread end this process once its parent has ended, and remove the folder of sockets that the parent left.

    Args:
        parent: its process id, as the parent has told it: it may have ended by now.
        address: ZeroMQ's, of one of the sockets that the parent has bound.
    """
    threading.Thread(target=_wait_and_end, args=(parent, address), name="parent", daemon=True).start()


def _wait_and_end(parent: int, address: str) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    remove_what_is_left(parent, address)
    os._exit(1)


def remove_what_is_left(parent: int, address: str, ending_s: float = 0.0) -> None:
    """Remove the folder of a socket on this machine if the parent, who would do so, has ended.

    Args:
        parent: its process id.
        address: of the socket.
        ending_s: how long it may take to end: its connections are closed a moment before its children can tell.
    """
    deadline = time.monotonic() + ending_s
    while os.getppid() == parent and time.monotonic() < deadline:
        time.sleep(_ENDING_CHECK_S)
    if os.getppid() != parent and address.startswith("ipc://"):
        shutil.rmtree(Path(address.removeprefix("ipc://")).parent, ignore_errors=True)
