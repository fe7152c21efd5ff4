"""Answers the challenges of a registry: basic authentication, or a token from the service that the challenge names.

https://distribution.github.io/distribution/spec/auth/token/ and .../oauth/ describe the tokens.
"""

from __future__ import annotations

import json
import re
import threading
from urllib.parse import urlencode, urljoin, urlsplit

from paiton_artifacts.errors import StoreAccessError, StoreError
from paiton_artifacts.store.oci.credentials import Credentials, find_credentials
from paiton_artifacts.store.oci.transport import TransferError, Transport

CLIENT = "paiton"
_MAX_TOKEN_ANSWER = 1 << 18
_PARAMETER = re.compile(r'([A-Za-z_]+)="([^"]*)"')
_HINT = "log in (docker login), or set PAITON_REGISTRY_USER and PAITON_REGISTRY_PASSWORD (docs/store.md)"


class Login:
    """What one registry has granted so far; for many threads at once.

    Args:
        transport: to the registry.
        host: that credentials are looked up for.
    """

    def __init__(self, transport: Transport, host: str) -> None:
        self._transport = transport
        self._host = host
        self._lock = threading.Lock()
        self._header = ""
        self._credentials: Credentials | None = None
        self._asked = False

    @property
    def header(self) -> str:
        """The header `Authorization` to send; empty before the first challenge."""
        return self._header

    def answer(self, challenge: str, used: str) -> None:
        """Gets what a challenge asks for, unless another thread has done so since.

        Args:
            challenge: the header `WWW-Authenticate`.
            used: the header that was sent with the request that was challenged.

        Raises:
            StoreAccessError: there is nothing to get, or the service refuses.
            TransferError: the service that gives tokens is out of reach.
        """
        with self._lock:
            if self._header != used:
                return
            kind, _, rest = challenge.partition(" ")
            if not self._asked:
                self._credentials, self._asked = find_credentials(self._host), True
            if kind.lower() == "bearer":
                self._header = "Bearer " + self._token(dict(_PARAMETER.findall(rest)))
            elif kind.lower() == "basic" and self._credentials is not None and self._credentials.basic() != used:
                self._header = self._credentials.basic()
            else:
                have = "" if self._credentials is None else ", and the credentials are wrong"
                raise StoreAccessError(f"{self._host} asks for a login{have}", hint=_HINT)

    def _token(self, asked: dict[str, str]) -> str:
        realm = urljoin(self._transport.base, asked.get("realm", ""))
        if urlsplit(realm).scheme != "https" and not self._transport.plain:
            raise StoreAccessError(f"{self._host} wants credentials sent without TLS to {realm}", hint="use TLS there")
        form: dict[str, str] = {name: asked[name] for name in ("service", "scope") if name in asked}
        headers = {"Accept": "application/json"}
        known = self._credentials
        if known is not None and known.identity_token:
            form |= {"grant_type": "refresh_token", "client_id": CLIENT, "refresh_token": known.identity_token}
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            method, url, body = "POST", realm, urlencode(form).encode()
        else:
            if known is not None:
                headers["Authorization"] = known.basic()
            method, url, body = "GET", f"{realm}{'&' if '?' in realm else '?'}{urlencode(form)}", None
        with self._transport.send(method, url, headers, body) as answer:
            data = answer.read(_MAX_TOKEN_ANSWER)
        if answer.status in (400, 401, 403):
            raise StoreAccessError(f"{realm} gives no token for {asked.get('scope', self._host)}", hint=_HINT)
        if answer.status != 200:
            raise TransferError(f"{realm}: status code: {answer.status}")
        try:
            found = json.loads(data)
            token = found.get("token") or found.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise StoreError(f"{realm}: no token in its answer", hint="check the registry's configuration")
        return token
