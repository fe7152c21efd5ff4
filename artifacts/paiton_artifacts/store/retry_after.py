"""Retry-After: how long a server asks its clients to wait."""

from __future__ import annotations

import http.client
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

_TIMEOUT = 10.0


def retry_after(url: str) -> float | None:
    """Asks for the headers of a URL; returns the seconds that the server wants to be left alone, None if it does not.

    Raises:
        OSError: no connection.
        http.client.HTTPException: the answer is not HTTP.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT)
    try:
        connection.request("HEAD", f"{parts.path}?{parts.query}" if parts.query else parts.path)
        answer = connection.getresponse()
        return parse_retry_after(answer.headers.get("Retry-After", ""), answer.headers.get("Date", ""))
    finally:
        connection.close()


def parse_retry_after(value: str, date: str) -> float | None:
    """Returns the seconds of a Retry-After header (RFC 9110): a number, or a point in time by the server's clock."""
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError):
        return None
    try:
        now = parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        now = time.time()
    return max(0.0, until - now)
