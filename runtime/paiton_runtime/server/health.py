"""Routes about the server itself; they answer at every stage of its life."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping

from paiton_runtime import VERSION
from paiton_runtime.server.http import Handler, HttpRequest, Response
from paiton_runtime.server.state import ServerState

OPEN_PATHS = frozenset({"/", "/boot", "/health", "/load", "/metrics", "/ping", "/version"})
"""Paths that need no API key: they compute nothing, and tell nothing of what is in requests."""

QUIET_PATHS = frozenset({"/health", "/load", "/metrics", "/ping", "/version"})
"""Paths that are asked every few seconds: only their failures are logged, and a drain does not wait for them."""


def health_routes(state: ServerState) -> Mapping[tuple[str, str], Handler]:
    """Returns the handlers by method and path."""

    def bound(handler: Callable[[ServerState, HttpRequest], Awaitable[Response]]) -> Handler:
        return functools.partial(handler, state)

    return {
        ("GET", "/health"): bound(_health),
        ("GET", "/ping"): bound(_health),
        ("POST", "/ping"): bound(_health),
        ("GET", "/version"): bound(_version),
        ("GET", "/load"): bound(_load),
    }


async def _health(state: ServerState, _request: HttpRequest) -> Response:
    """200 with an empty body, as vLLM, or 503 with the reason."""
    state.require_ready()
    return Response()


async def _version(_state: ServerState, _request: HttpRequest) -> Response:
    return Response.json({"version": VERSION})


async def _load(state: ServerState, _request: HttpRequest) -> Response:
    return Response.json({"server_load": state.running})
