"""Serving under a prefix that a proxy adds."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


def route_path(scope: Scope) -> str:
    """The path that a request asks for, without the prefix."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if root else path


class RootPathMiddleware:
    """Tells what lies inside its prefix; requests are understood with it (not cut off by the proxy) and without.

    Args:
        app: what lies inside.
        root_path: the prefix, such as ``/llm``; empty for none.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._root_path:
            scope["root_path"] = self._root_path
        await self._app(scope, receive, send)
