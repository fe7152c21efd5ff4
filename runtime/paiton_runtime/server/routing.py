"""From a method and a path to a handler."""

from __future__ import annotations

from collections.abc import Mapping

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import Handler, HttpRequest


class Router:
    """Finds handlers.

    Args:
        routes: by method and path. A path that ends in "*" also stands for all that begin like it, where no exact one
            fits; the request's `tail` is then what stands in place of the star. GET routes answer HEAD as well.
    """

    def __init__(self, routes: Mapping[tuple[str, str], Handler]) -> None:
        self._exact: dict[str, dict[str, Handler]] = {}
        self._open: list[tuple[str, dict[str, Handler]]] = []
        for (method, path), handler in routes.items():
            self._exact.setdefault(path, {})[method] = handler
        for path in [path for path in self._exact if path.endswith("*")]:
            self._open.append((path[:-1], self._exact.pop(path)))

    def find(self, request: HttpRequest) -> Handler:
        """Returns the handler, and sets the request's `tail`.

        Raises:
            ApiError: 404 or 405.
        """
        methods = self._methods(request)
        if methods is None:
            raise ApiError(404, f"there is nothing at {request.path[:200]}", code="unknown_path")
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = allow(methods)
            text = f"{request.path[:200]} does not take {request.method}; it takes {allowed}"
            raise ApiError(405, text, code="method_not_allowed", headers=(("allow", allowed),))
        return handler

    def allowed(self, request: HttpRequest) -> str | None:
        """Returns the methods that a path takes, as in the header Allow; None: there is nothing at it."""
        methods = self._methods(request)
        return None if methods is None else allow(methods)

    def _methods(self, request: HttpRequest) -> dict[str, Handler] | None:
        if (methods := self._exact.get(request.path)) is not None:
            return methods
        for prefix, methods in self._open:
            if request.path.startswith(prefix) and len(request.path) > len(prefix):
                request.tail = request.path[len(prefix) :]
                return methods
        return None


def allow(methods: Mapping[str, Handler]) -> str:
    """Returns the value of the header Allow."""
    return ", ".join([*sorted({*methods, *(("HEAD",) if "GET" in methods else ())}), "OPTIONS"])
