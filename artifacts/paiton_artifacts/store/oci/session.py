"""Requests to one registry: logging in when asked to, sorting out refusals, trying again within bounds (`retry`)."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar
from urllib.parse import urljoin

from paiton_artifacts.errors import ObjectNotFoundError, PaitonError, StoreAccessError, StoreError
from paiton_artifacts.store.oci.login import Login
from paiton_artifacts.store.oci.transport import Answer, Body, TransferError, Transport
from paiton_artifacts.store.retry import Attempts, RetryPolicy
from paiton_artifacts.store.retry_after import parse_retry_after

MAX_CHALLENGES = 3
_PASSING = frozenset({408, 425, 429})
_MAX_REFUSAL = 1 << 16
_DOCKER_HUB = "registry-1.docker.io"

_T = TypeVar("_T")


class BodyTooLargeError(Exception):
    """The registry, or what stands before it, takes no request of this size."""


class Session:
    """What the requests to a registry have in common; for many threads at once.

    Args:
        what: names the repository in messages.
        host: of the registry, with its port if it has one.
        retry: how patient to be.
        stop: once set, operations that wait for a better time give up.
    """

    def __init__(self, what: str, host: str, retry: RetryPolicy, stop: threading.Event | None) -> None:
        self._what = what
        self._retry = retry
        self._stop = stop
        self._transport = Transport(_DOCKER_HUB if host == "docker.io" else host)
        self._login = Login(self._transport, host)

    def run(self, what: str, attempt: Callable[[], _T]) -> _T:
        """Returns what an operation returns, tried again while its failures may pass.

        Raises:
            PaitonError: it failed for good.
        """
        failures = self.failures(f"{what} ({self._what})")
        while True:
            try:
                return attempt()
            except Exception as error:  # noqa: BLE001  (sorted out there)
                failures.failed(error)

    def failures(self, what: str) -> Failures:
        """Returns a count of the failures of one operation."""
        return Failures(what, self._retry, self._stop)

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | Callable[[], Iterable[bytes]] = None,
        accept: tuple[int, ...] = (200,),
    ) -> Answer:
        """Sends one request, logging in if asked to.

        Args:
            method: of the request.
            url: whole, or a path of the registry.
            headers: of the request.
            body: if it is a function, called for every time that the request is sent.
            accept: statuses that are no failure.

        Raises:
            ObjectNotFoundError: status 404.
            StoreAccessError: the registry wants another login, or none will do.
            TransferError: it may work later.
            BodyTooLargeError: status 413.
            StoreError: any other status.
        """
        url = urljoin(self._transport.base, url)
        own = url.startswith(f"{self._transport.base}/")
        for _ in range(MAX_CHALLENGES):
            used = self._login.header
            sent = {**(headers or {}), **({"Authorization": used} if used and own else {})}
            answer = self._transport.send(method, url, sent, body() if callable(body) else body)
            if answer.status in accept:
                return answer
            with answer:
                said = _error_in(answer)
            if answer.status != 401 or not own:
                raise self._refusal(method, url, answer, said)
            challenges = answer.headers.get_all("WWW-Authenticate") or [""]
            self._login.answer(
                next((one for one in challenges if one.lower().startswith("bearer")), challenges[0]), used
            )
        raise StoreAccessError(
            f"{self._what}: access denied", hint="log in with an account that may do this (docs/store.md)"
        )

    def _refusal(self, method: str, url: str, answer: Answer, said: str) -> Exception:
        status, what = answer.status, f"{method} {url.partition('?')[0]}"
        if status == 404:
            return ObjectNotFoundError(
                f"{what}: {said or 'there is none'}", hint="check the URL, or push the bundle again"
            )
        if status == 403:
            return StoreAccessError(f"{what}: access denied: {said}", hint="ask for access to this repository")
        if status == 413:
            return BodyTooLargeError()
        if status >= 500 or status in _PASSING:
            error = TransferError(f"{what}: status code: {status} {said}")
            value, date = answer.headers.get("Retry-After", ""), answer.headers.get("Date", "")
            error.retry_after = parse_retry_after(value, date) if value else None
            return error
        return StoreError(f"{what}: status {status} {said}".rstrip(), hint="check the URL and what the registry allows")


class Failures:
    """The failures of one operation, with the wait that the last of them asked for.

    Args:
        what: names the operation in messages.
        retry: how patient to be.
        stop: as for `Session`.
    """

    def __init__(self, what: str, retry: RetryPolicy, stop: threading.Event | None) -> None:
        self._asked: float | None = None
        self._attempts = Attempts(what, retry, lambda: self._asked, stop)

    def progressed(self) -> None:
        """Notes that the last attempt brought the operation further than any before."""
        self._attempts.progressed()

    def failed(self, error: Exception) -> None:
        """Returns when it is time for the next attempt.

        Raises:
            PaitonError: there will be none.
        """
        if isinstance(error, BodyTooLargeError):
            error = StoreError("the registry takes no request of 8 MiB", hint="raise the limit of the proxy before it")
        if not isinstance(error, (PaitonError, TransferError)):
            raise error
        self._asked = getattr(error, "retry_after", None)
        self._attempts.failed(error)


def _error_in(answer: Answer) -> str:
    """Returns what a registry says about a refusal, on one line."""
    try:
        found = json.loads(answer.read(_MAX_REFUSAL))["errors"][0]
        return " ".join(f"{found.get('code', '')} {found.get('message', '')}".split())[:200]
    except Exception:  # noqa: BLE001  (it is for a message only)
        return ""
