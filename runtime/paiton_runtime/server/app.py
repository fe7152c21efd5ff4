"""The ASGI application: access, routes, limits and the request log around the handlers.

Whatever happens inside, a request gets exactly one answer or its connection is closed, and a handler whose client has
gone is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from paiton_artifacts.errors import PaitonError
from paiton_runtime.server.access import ApiKeys, Cors
from paiton_runtime.server.errors import ApiError, as_api_error
from paiton_runtime.server.health import OPEN_PATHS, QUIET_PATHS
from paiton_runtime.server.http import (
    ClientGoneError,
    EventStream,
    Handler,
    HttpRequest,
    Limits,
    Receive,
    Response,
    Scope,
    Send,
)
from paiton_runtime.server.reply import Reply
from paiton_runtime.server.request_log import RequestLog
from paiton_runtime.server.routing import Router
from paiton_runtime.server.state import ServerState

CLIENT_GONE = 499
"""Status in the log of a request whose client left before its answer began, as in nginx."""


class App:
    """The application.

    Args:
        state: of the server.
        routes: handlers by method and path; see `Router`.
        log: where finished requests go.
    """

    def __init__(self, state: ServerState, routes: Mapping[tuple[str, str], Handler], log: RequestLog) -> None:
        options = state.options
        self._state = state
        self._router = Router(routes)
        self._log = log
        self._keys = ApiKeys(options.api_keys)
        self._cors = Cors(options.cors)
        self._limits = Limits(options.max_request_bytes, options.body_timeout)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        began = time.monotonic()
        request = HttpRequest(scope, receive, self._limits)
        self._strip_root(request)
        reply = Reply(request, send, (("x-request-id", request.request_id), *self._cors.headers(request)))
        quiet = request.path in QUIET_PATHS
        if not quiet:
            self._state.begin()
        try:
            await self._bounded(request, reply)
        except Exception as error:  # noqa: BLE001  (of sending an answer: a header that HTTP forbids, say)
            self._log.failure("an answer could not be sent", error, id=request.request_id)
        finally:
            if not quiet:
                self._state.end()
            status = reply.status or CLIENT_GONE
            if not quiet or status >= 400:
                self._log.request(
                    id=request.request_id,
                    method=request.method,
                    path=request.path[:256],
                    status=status,
                    seconds=round(time.monotonic() - began, 6),
                    client=request.client,
                    **({"ended": reply.ended} if reply.ended else {}),
                )

    def _strip_root(self, request: HttpRequest) -> None:
        """A proxy may have left its prefix in the path or not: both are understood."""
        root = self._state.options.root_path
        if root and (request.path == root or request.path.startswith(root + "/")):
            request.path = request.path[len(root) :] or "/"

    async def _bounded(self, request: HttpRequest, reply: Reply) -> None:
        """Runs the handler until it ends, its client goes, or its time is over."""
        work = asyncio.ensure_future(self._answer(request, reply))
        gone = asyncio.ensure_future(request.disconnected())
        limit = self._state.options.request_timeout
        try:
            await asyncio.wait({work, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and gone.done():
                reply.ended = "client gone"
        finally:
            # Also where this task itself is cancelled, which is how the server's end reaches a request.
            timed_out = not work.done() and not gone.done()
            gone.cancel()
            work.cancel()
            await asyncio.wait({work, gone})
        if timed_out:
            error = ApiError(504, f"the answer was not complete within {limit:g} s", code="request_timeout")
            reply.ended = "timed out"
            await reply.fail(error)
        elif not work.cancelled():
            work.result()

    async def _answer(self, request: HttpRequest, reply: Reply) -> None:
        """Runs the handler and sends what it gives, or the error that it raises."""
        try:
            answer = await self._dispatch(request)
            if isinstance(answer, EventStream):
                await reply.stream(answer)
            else:
                await reply.whole(answer)
        except ClientGoneError:
            reply.ended = "client gone"
        except ApiError as error:
            await reply.fail(error)
        except PaitonError as error:
            await reply.fail(as_api_error(error) or self._internal(request, error))
        except Exception as error:  # noqa: BLE001  (a handler's bug must not become the client's puzzle)
            await reply.fail(self._internal(request, error))

    async def _dispatch(self, request: HttpRequest) -> Response | EventStream:
        if request.method == "OPTIONS":
            allowed = self._router.allowed(request)
            if allowed is not None and self._cors.is_preflight(request):
                return self._cors.preflight(request, allowed)
            if allowed is not None:
                return Response(204, (("allow", allowed),))
        if request.path not in OPEN_PATHS:
            self._keys.check(request)
        return await self._router.find(request)(request)

    def _internal(self, request: HttpRequest, error: Exception) -> ApiError:
        """What went wrong is for the log; the client gets the id to ask for."""
        self._log.failure("internal error", error, id=request.request_id, path=request.path[:256])
        return ApiError(500, f"internal error; the server's log has it under {request.request_id}", code="internal")
