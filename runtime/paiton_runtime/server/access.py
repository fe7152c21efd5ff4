"""Who may ask: API keys, and pages of other origins (CORS)."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import Headers, HttpRequest, Response
from paiton_runtime.server.options import CorsOptions

_PREFLIGHT_SECONDS = "600"


class ApiKeys:
    """The keys that open the server; without any, everybody may ask."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    def check(self, request: HttpRequest) -> None:
        """Compares in a time that does not depend on how much of a key is right.

        Raises:
            ApiError: 401, because there are keys and the request brings none of them.
        """
        if not self._digests:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = _digest(key.strip())
        known = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(known):
            challenge = (("www-authenticate", "Bearer"),)
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers=challenge)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


class Cors:
    """Answers of the protocol at https://fetch.spec.whatwg.org/#http-cors-protocol."""

    def __init__(self, options: CorsOptions) -> None:
        self._options = options
        self._every_origin = "*" in options.origins

    def is_preflight(self, request: HttpRequest) -> bool:
        """Whether a browser asks if a page may ask."""
        return request.method == "OPTIONS" and {"origin", "access-control-request-method"} <= request.headers.keys()

    def preflight(self, request: HttpRequest, allowed: str) -> Response:
        """Answers a preflight; `allowed` are the methods that the path takes."""
        options = self._options
        headers = self.headers(request)
        if not headers:
            raise ApiError(403, "this origin may not ask", code="origin_not_allowed", headers=(("vary", "Origin"),))
        # Beside credentials a star means nothing to browsers, so what they ask for is repeated to them.
        asked = request.headers.get("access-control-request-headers", "")
        methods = allowed if "*" in options.methods else ", ".join(options.methods)
        names = asked if "*" in options.headers else ", ".join(options.headers)
        headers += (("access-control-allow-methods", methods), ("access-control-max-age", _PREFLIGHT_SECONDS))
        if names:
            headers += (("access-control-allow-headers", names),)
        return Response(204, headers)

    def headers(self, request: HttpRequest) -> Headers:
        """Returns what an answer to the request carries; nothing where the request comes from no page."""
        origin = request.headers.get("origin")
        options = self._options
        if origin is None or not (self._every_origin or origin in options.origins):
            return ()
        headers: Headers = (("access-control-expose-headers", "x-request-id"),)
        if self._every_origin and not options.credentials:
            return (("access-control-allow-origin", "*"), *headers)
        headers = (("access-control-allow-origin", origin), ("vary", "Origin"), *headers)
        return (*headers, ("access-control-allow-credentials", "true")) if options.credentials else headers
