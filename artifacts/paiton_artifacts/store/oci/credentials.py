"""User names and passwords for registries: from the environment, else from Docker's configuration and its helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from paiton_artifacts.errors import StoreAccessError, UsageError

USER_VARIABLE = "PAITON_REGISTRY_USER"
PASSWORD_VARIABLE = "PAITON_REGISTRY_PASSWORD"  # noqa: S105  (its name)
CONFIG_VARIABLE = "DOCKER_CONFIG"

HELPER_SECONDS = 60.0
_MAX_CONFIG = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TOKEN_USER = "<token>"  # noqa: S105  (what a helper calls whoever has an identity token)
_DOCKER_HUB = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks: a user with a password, or an identity token that is exchanged for others."""

    user: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """Returns the header of basic authentication (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(host: str) -> Credentials | None:
    """Returns the credentials for a registry; None where there are none, and it is asked as anybody.

    Raises:
        UsageError: only one of the two variables is set, or Docker's configuration is malformed.
        StoreAccessError: a credential helper fails.
    """
    user, password = os.environ.get(USER_VARIABLE), os.environ.get(PASSWORD_VARIABLE)
    if user and password:
        return Credentials(user, password)
    if user or password:
        raise UsageError(f"only one of {USER_VARIABLE} and {PASSWORD_VARIABLE} is set", hint="set both, or none")
    folder = os.environ.get(CONFIG_VARIABLE)
    path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
    config = _read(path)
    names = (host, f"https://{host}", *((_DOCKER_HUB,) if host.endswith("docker.io") else ()))
    helpers, auths = _member(config, "credHelpers"), _member(config, "auths")
    for name in names:
        helper = helpers.get(name)
        if isinstance(helper, str):
            return _ask(helper, name)
    store = config.get("credsStore")
    for name in names:
        entry = auths.get(name)
        if isinstance(entry, dict):
            found = _decode(entry, f"{path}: {name}")
            if found is None and isinstance(store, str):
                found = _ask(store, name)
            if found is not None:
                return found
    return None


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", hint=f"make it readable, or set {CONFIG_VARIABLE}") from error
    try:
        config = json.loads(data) if len(data) <= _MAX_CONFIG else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise UsageError(f"{path} is no configuration of Docker's", hint="log in again, or remove it")
    return config


def _member(config: dict[str, object], name: str) -> dict[str, object]:
    value = config.get(name)
    return value if isinstance(value, dict) else {}


def _decode(entry: dict[str, object], what: str) -> Credentials | None:
    """Returns what an entry of `auths` says; None where a helper keeps it."""
    token, auth = entry.get("identitytoken"), entry.get("auth")
    if isinstance(token, str) and token:
        return Credentials("", "", token)
    if isinstance(auth, str) and auth:
        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise UsageError(f"{what}: its `auth` is no user and password", hint="log in again")
        return Credentials(user, password.rstrip("\0"))
    name, secret = entry.get("username"), entry.get("password")
    return Credentials(name, secret) if isinstance(name, str) and isinstance(secret, str) else None


def _ask(helper: str, name: str) -> Credentials | None:
    """Asks a credential helper (github.com/docker/docker-credential-helpers); None where it knows nothing."""
    if not _HELPER.fullmatch(helper):
        raise UsageError(f"{helper!r} is no credential helper", hint="repair Docker's configuration")
    command = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [command, "get"], input=name.encode(), capture_output=True, timeout=HELPER_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreAccessError(f"{command}: {error}", hint="install it, or log in without it") from error
    if done.returncode:
        said = (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()
        if any("credentials not found" in line for line in said):
            return None
        raise StoreAccessError(f"{command} get {name}: {said[-1] if said else 'failed'}", hint="log in again")
    try:
        found = json.loads(done.stdout)
        user, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreAccessError(f"{command} get {name}: no credentials in its answer", hint="log in again") from error
    return Credentials("", "", secret) if user == _TOKEN_USER else Credentials(user, secret)
