"""The socket that the server listens on: bound before anything heavy is imported, so that clients can queue at once."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress
from pathlib import Path

from paiton_artifacts.errors import ResourceError, UsageError
from paiton_runtime.server.options import ServeOptions

_BACKLOG = 2048


class Listener:
    """A listening socket and its address.

    Raises:
        UsageError: there is no such address, or it may not be taken.
        ResourceError: the address is in use.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._uds = options.uds
        if options.uds is not None:
            self.socket = _bind_unix(options.uds)
            self.url = f"unix:{options.uds}"
        else:
            self.socket = _bind_tcp(options.host, options.port)
            host, port = self.socket.getsockname()[:2]
            scheme = "http" if options.tls is None else "https"
            self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
        self.socket.listen(_BACKLOG)

    def close(self) -> None:
        """Closes the socket; a unix socket's path goes with it."""
        self.socket.close()
        if self._uds is not None:
            self._uds.unlink(missing_ok=True)


def _bind_tcp(host: str, port: int) -> socket.socket:
    where = f"{host}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise UsageError(f"--host {host}: {error.strerror}", hint="give an address of this machine") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" is every address, of both kinds
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _refusal(error, where, "choose another with --port, or 0 for a free one") from error
    return bound


def _bind_unix(path: Path) -> socket.socket:
    _remove_stale(path)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(str(path))
    except OSError as error:
        bound.close()
        raise _refusal(error, f"--uds {path}", "choose another path") from error
    return bound


def _remove_stale(path: Path) -> None:
    """A server that was killed leaves its socket behind; one that nobody listens on is in nobody's way."""
    try:
        if not path.is_socket():
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                path.unlink()
        except OSError:
            return


def _refusal(error: OSError, where: str, hint: str) -> ResourceError | UsageError:
    kind = ResourceError if error.errno == errno.EADDRINUSE else UsageError
    return kind(f"cannot listen on {where}: {error.strerror or error}", hint=hint)
