"""Errors of the HTTP interface, in the shape that OpenAI's clients expect."""

from __future__ import annotations

from paiton_artifacts import errors as paiton


class ApiError(Exception):
    """Answered as `{"error": {"message", "type", "param", "code"}}`.

    Args:
        status: HTTP status.
        message: for people: the thing, its value, the remedy.
        param: the field of the request's body that is wrong.
        code: a word for programs, such as "model_not_found".
        kind: OpenAI's `type`; by default what belongs to the status.
        headers: of the answer, such as Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind if kind is not None else _KINDS.get(status, "server_error" if status >= 500 else _INVALID)
        self.headers = headers

    def body(self) -> dict[str, object]:
        """Returns the JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


_INVALID = "invalid_request_error"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 503: "service_unavailable"}

_STATUSES: tuple[tuple[str, int, str | None], ...] = (
    ("PromptTooLongError", 400, "context_length_exceeded"),
    ("QueueFullError", 429, "queue_full"),
    ("EngineStoppedError", 503, "shutting_down"),
    ("UsageError", 400, None),
    ("UnsupportedError", 400, "unsupported"),
)
"""Status and code of an error raised on purpose, by the name of its class or a base; the first that fits counts."""

_RETRY = (("retry-after", "1"),)


def as_api_error(error: paiton.PaitonError) -> ApiError | None:
    """Returns how an error that a request caused is answered; None: the fault is not the request's."""
    names = {kind.__name__ for kind in type(error).__mro__}
    for name, status, code in _STATUSES:
        if name in names:
            headers = _RETRY if status in {429, 503} else ()
            text = f"{error.message} ({error.hint})" if error.hint else error.message
            return ApiError(status, text, code=code, headers=headers)
    return None
