"""A server process around the fake engine, for tests that send real signals: ``python -m tests.server.serve_fake``."""

from __future__ import annotations

import asyncio

from parhelion.config import ServerConfig
from parhelion.server.listener import bind
from parhelion.server.run import StopSignals, serve_engine

from .fake_engine import FakeEngine


async def main() -> None:
    with bind("127.0.0.1", 0) as listener, StopSignals.handled() as signals:
        await serve_engine(
            FakeEngine(delay_s=0.02), ServerConfig(), listener, lambda url: print(url, flush=True), signals
        )


if __name__ == "__main__":
    asyncio.run(main())
