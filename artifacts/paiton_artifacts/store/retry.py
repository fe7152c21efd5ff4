"""What to do when a store fails: which errors pass, how long to wait, when to give up and what to say then.

obstore could retry by itself, but neither waits as long as a server asks (Retry-After) nor goes on in the middle of an
object, so its own retries are switched off and every request of ours runs under an `Attempts`.
"""

from __future__ import annotations

import os
import random
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from paiton_artifacts.errors import (
    DiskFullError,
    ObjectNotFoundError,
    PaitonError,
    StoreAccessError,
    StoreError,
    StoreUnavailableError,
    UsageError,
)

ATTEMPTS_VARIABLE = "PAITON_STORE_ATTEMPTS"

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_PASSING_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 507, 509})
_PASSING_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "TooManyRequests"})
_EXPIRED_CODES = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken"})
_SKEW_CODES = frozenset({"RequestTimeTooSkewed", "RequestExpired"})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient to be.

    Attributes:
        attempts: failures in a row, without a byte of progress in between, after which we give up.
        first_delay: seconds before the second attempt; every further wait is twice as long, and jittered.
        longest_delay: seconds that a wait of ours grows to.
        longest_asked: the longest wait in seconds that a server may ask for; one that wants more is given up on.
    """

    attempts: int = 12
    first_delay: float = 0.25
    longest_delay: float = 10.0
    longest_asked: float = 60.0

    @classmethod
    def from_environment(cls) -> RetryPolicy:
        """Returns the default, with as many attempts as PAITON_STORE_ATTEMPTS says.

        Raises:
            UsageError: it is no number.
        """
        text = os.environ.get(ATTEMPTS_VARIABLE)
        if text is None:
            return cls()
        if not text.isdecimal() or not 1 <= int(text) <= 1000:
            raise UsageError(f"{ATTEMPTS_VARIABLE}={text!r} is no number of attempts", hint="set 1 to 1000")
        return cls(attempts=int(text))


class Failure(NamedTuple):
    """What an error of obstore says: HTTP status and S3's error code, where there are any, and its first line."""

    status: int | None
    code: str
    reason: str

    @property
    def passing(self) -> bool:
        """Says whether the same request may succeed later: broken connections, timeouts, a server that is busy."""
        if self.code in _EXPIRED_CODES or self.code in _SKEW_CODES:
            return False
        return self.status is None or self.status in _PASSING_STATUSES or self.code in _PASSING_CODES

    @property
    def throttled(self) -> bool:
        """Says whether the server asked for less."""
        return self.status in (429, 503) or self.code == "SlowDown"


def describe(error: BaseException) -> Failure:
    """Reads an error of obstore, whose only interface is its text; the body of an answer is not repeated in full."""
    text = str(error)
    line = text.partition("\n\nDebug source")[0].replace("\n", " ")
    status, code = _STATUS.search(text), _CODE.search(text)
    reason = line if len(line) <= 300 else line[:297] + "..."
    return Failure(int(status[1]) if status else None, code[1] if code else "", reason)


class Attempts:
    """Counts the failures of one operation; sleeps between them, or raises what the last one means.

    Args:
        what: the operation and the object, for messages: "reading s3://bucket/key".
        policy: how patient to be.
        ask_delay: asks the server how long to wait; None where it does not say.
        stop: once set, a wait ends at once, because whoever asked for the operation has gone.
    """

    def __init__(
        self, what: str, policy: RetryPolicy, ask_delay: Callable[[], float | None], stop: threading.Event | None = None
    ) -> None:
        self._what = what
        self._policy = policy
        self._ask_delay = ask_delay
        self._stop = stop or threading.Event()
        self._failures = 0

    def progressed(self) -> None:
        """Notes that the last attempt brought the operation further than any before."""
        self._failures = 0

    def failed(self, error: Exception) -> None:
        """Returns when it is time for the next attempt.

        Raises:
            PaitonError: `error` itself, if it is one of ours.
            ObjectNotFoundError: there is no such object.
            StoreAccessError: credentials are missing, wrong, expired or too weak.
            StoreUnavailableError: too many attempts have failed, or the server asks for too long a wait.
            StoreError: no further attempt can succeed.
        """
        failure = self._fatal(error)
        self._failures += 1
        if self._failures >= self._policy.attempts:
            raise StoreUnavailableError(
                f"{self._what} failed {self._failures} times, in the end with: {failure.reason}",
                hint="check that the store is up and reachable, then run the same command again: it resumes",
            ) from error
        delay = self._policy.first_delay * 2 ** (self._failures - 1)
        delay = min(delay, self._policy.longest_delay) * random.uniform(0.5, 1.0)  # noqa: S311  (jitter)
        asked = self._ask_delay() if failure.throttled else None
        if asked is not None and asked > self._policy.longest_asked:
            raise StoreUnavailableError(
                f"{self._what}: the server asks for a wait of {asked:.0f} s", hint="run the same command again later"
            ) from error
        if self._stop.wait(max(delay, asked or 0.0)):
            raise StoreError(f"{self._what} was stopped") from error

    def _fatal(self, error: Exception) -> Failure:
        """Raises what no further attempt can mend; returns the description of anything else."""
        if isinstance(error, PaitonError):
            raise error
        failure = describe(error)
        kind = type(error).__name__
        if isinstance(error, FileNotFoundError):
            raise ObjectNotFoundError(
                f"{self._what}: there is no such object", hint="check the URL, or push the bundle again"
            ) from error
        if failure.code in _SKEW_CODES:
            raise StoreAccessError(
                f"{self._what}: the store says that the clocks differ ({failure.code})", hint="set this machine's clock"
            ) from error
        if kind in ("PermissionDeniedError", "UnauthenticatedError") or failure.code in _EXPIRED_CODES:
            expired = failure.code in _EXPIRED_CODES
            what = "the credentials have expired" if expired else f"access denied: {failure.reason}"
            raise StoreAccessError(
                f"{self._what}: {what}", hint="renew or set the store's credentials in the environment (docs/store.md)"
            ) from error
        if "No space left on device" in failure.reason or "StorageFull" in str(error):
            raise DiskFullError(f"{self._what}: {failure.reason}", hint="free space where the store lives") from error
        permanent = kind in ("NotSupportedError", "InvalidPathError", "UnknownConfigurationKeyError")
        if permanent or isinstance(error, (NotImplementedError, OSError, ValueError)) or not failure.passing:
            raise StoreError(f"{self._what}: {failure.reason}", hint="check the URL and the environment") from error
        return failure
