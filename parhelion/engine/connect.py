"""Which connection the options ask for: to an engine in a process, in a thread, or to several of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parhelion.config import EngineConfig
from parhelion.engine.connection import Connection, ProcessConnection
from parhelion.engine.messages import EngineFailed, EngineInfo, LoadProgress
from parhelion.engine.names import model_name
from parhelion.engine.replicas.connections import ReplicaConnections
from parhelion.engine.replicas.replica import RestartPolicy, restart_policy
from parhelion.errors import ConfigError, EngineDeadError, ParhelionError, error_of_kind


def connect(config: EngineConfig, model_path: Path, in_process: bool, restarts: RestartPolicy | None) -> Connection:
    """Start what the options ask for; to be called in the event loop that will use it.

    Args:
        config: all options.
        model_path: a folder or a ``.gguf`` file.
        in_process: a thread of this process.
        restarts: when replicas are started again; None is what fits the options.

    Raises:
        ConfigError: several replicas in this process, or one that is to be started again.
    """
    name = model_name(config.model)
    if not in_process and not config.is_supervised:
        return ProcessConnection(config, model_path, name)
    if not in_process:
        return ReplicaConnections(
            config,
            lambda options, replica: ProcessConnection(options, model_path, name, replica),
            restarts or restart_policy(config),
        )
    if config.dp > 1:
        raise ConfigError(f"dp is {config.dp}, and one process holds one engine: leave in_process out, or take dp 1")
    if config.is_supervised:
        raise ConfigError(f"executor is {config.executor}, whose engine has a process of its own: leave in_process out")
    # Only this road computes in this process, so only here is torch imported.
    from parhelion.engine.thread_connection import ThreadConnection

    return ThreadConnection(config, model_path, name)


async def wait_until_ready(connection: Connection, progress: Callable[[int, int], None] | None) -> EngineInfo:
    """What the engine has become, once it is ready.

    Args:
        connection: that was just made.
        progress: called with tensors read so far and how many there are.

    Raises:
        ParhelionError: it cannot start; under the class of its own error.
    """
    while True:
        message = await connection.receive()
        if isinstance(message, EngineInfo):
            return message
        if isinstance(message, LoadProgress) and progress is not None:
            progress(message.done, message.total)
        if isinstance(message, EngineFailed):
            raise _start_error(message)


def _start_error(message: EngineFailed) -> ParhelionError:
    """The error that kept the engine from starting, under its own class where that is one of ours."""
    error = error_of_kind(message.kind, message.message)
    return EngineDeadError(f"the engine did not start: {error}") if isinstance(error, EngineDeadError) else error
