"""Parhelion as an application of Ray Serve: ``serve run parhelion.ray:deployment model=qwen3-8b``.

Ray Serve has the port, the routing and the replicas; each replica is an engine with the same endpoints as
``parhelion serve``. Needs ``pip install 'ray[serve]'``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import msgspec

from parhelion.config import EngineConfig, ServerConfig, parse_bytes, read_environment
from parhelion.engine.async_engine import AsyncEngine
from parhelion.errors import ConfigError, EngineDeadError
from parhelion.platform.garbage import keep_for_good
from parhelion.server.app import create_app

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

_NOT_HERE = ("host", "port", "drain_timeout_s", "root_path")
"""Options of the server that are Ray Serve's affair."""


def deployment(args: Mapping[str, Any]) -> Application:
    """What ``serve run`` and the ``import_path`` of a Serve config build.

    Args:
        args: fields of ``EngineConfig`` and ``ServerConfig``, as values or as text; besides them ``deployment``, what
            Serve's own ``Deployment.options`` takes (``num_replicas``, ``ray_actor_options`` and so on). Without
            ``ray_actor_options`` an engine on GPUs has as many as it has ranks, but for executor ``ray``, which asks
            Ray for them itself.

    Raises:
        ConfigError: Ray Serve is not installed, or an option is unknown or unusable.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(f"Ray Serve cannot be imported ({error}): pip install 'ray[serve]'") from None
    own = dict(args)
    options = {"max_ongoing_requests": ServerConfig.max_concurrent_requests, **own.pop("deployment", {})}
    engine, server = options_of(own)
    options.setdefault("ray_actor_options", {"num_gpus": gpus_of(engine)})
    served = serve.deployment(name="parhelion", **options)(serve.ingress()(ServedEngine))
    return served.bind(engine, server)


def options_of(args: Mapping[str, Any]) -> tuple[EngineConfig, ServerConfig]:
    """The records that arguments stand for.

    Raises:
        ConfigError: one is unknown or unusable.
    """
    of_engine = {field.name for field in fields(EngineConfig)}
    of_server = {field.name for field in fields(ServerConfig)} - set(_NOT_HERE)
    if unknown := sorted(set(args) - of_engine - of_server):
        raise ConfigError(
            f"unknown argument {', '.join(unknown)}; there are deployment, {', '.join(sorted(of_engine | of_server))}"
        )
    values = {name: [value] if _is_text_of_list(name, value) else value for name, value in args.items()}
    if isinstance(memory := values.get("kv_cache_memory"), str):
        values["kv_cache_memory"] = parse_bytes(memory)
    try:
        return (
            msgspec.convert({k: v for k, v in values.items() if k in of_engine}, EngineConfig, strict=False),
            msgspec.convert({k: v for k, v in values.items() if k in of_server}, ServerConfig, strict=False),
        )
    except msgspec.ValidationError as error:
        raise ConfigError(f"an argument cannot be used: {error}") from None


def _is_text_of_list(name: str, value: Any) -> bool:
    return name in ("kernels", "api_keys") and isinstance(value, str)


def gpus_of(engine: EngineConfig) -> int:
    """GPUs that Serve has to give a replica."""
    return 0 if engine.device == "cpu" or engine.executor == "ray" else engine.num_ranks * engine.dp


class ServedEngine:
    """One replica of Ray Serve's: an engine in a process of its own, and the application that serves it.

    Args:
        engine: all options.
        server: limits, keys and names.

    Raises:
        ParhelionError: the engine cannot start.
    """

    async def __init__(self, engine: EngineConfig, server: ServerConfig) -> None:  # type: ignore[misc]
        self._server = replace(server, api_keys=server.api_keys + read_environment().api_keys)
        self._engine = await AsyncEngine.from_config(engine)
        keep_for_good(collect=False)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray Serve hands the requests to."""
        return create_app(self._engine, self._server)

    def check_health(self) -> None:
        """Ray Serve starts a replica again that raises here.

        Raises:
            EngineDeadError: the engine has ended, and will not start again by itself.
        """
        if self._engine.is_dead:
            raise EngineDeadError("the engine has ended and serves nothing more")

    async def __del__(self) -> None:
        """Ray Serve waits for the end of it."""
        await self._engine.shutdown()
