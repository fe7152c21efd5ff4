"""Azurite, Microsoft's own server of Azure Blob Storage's protocol, as a process of its own."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import urllib.error
import urllib.request
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.cpu.store.server import Server, free_ports

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""The same on every such server."""

CONTAINER = "paiton-test"


class Azurite(Server):
    """A server with one container, which ends with its data.

    Args:
        folder: for its log.
    """

    def __init__(self, folder: Path) -> None:
        found = shutil.which("azurite-blob")
        if found is None:
            pytest.skip("azurite-blob is not installed: npm install -g azurite")
        super().__init__(folder)
        (self.port,) = free_ports(1)
        self._executable = found

    def command(self) -> list[str]:
        """Returns the command line that runs it."""
        where = ["--blobHost", "127.0.0.1", "--blobPort", str(self.port)]
        return [
            self._executable,
            "--inMemoryPersistence",
            *where,
            "--silent",
            "--skipApiVersionCheck",
            "--disableTelemetry",
        ]

    def environment(self, port: int | None = None) -> dict[str, str]:
        """Returns the variables by which clients find it, or a proxy in front of it."""
        return {
            "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": KEY,
            "AZURE_STORAGE_ENDPOINT": f"http://127.0.0.1:{port or self.port}/{ACCOUNT}",
        }

    def answers(self) -> bool:
        """Makes the container, with a request signed as Azure's "Authorize with Shared Key" describes."""
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02"}
        signed = "PUT" + "\n" * 12 + "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
        signed += f"/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
        mac = base64.b64encode(hmac.digest(base64.b64decode(KEY), signed.encode(), hashlib.sha256)).decode()
        url = f"http://127.0.0.1:{self.port}/{ACCOUNT}/{CONTAINER}?restype=container"
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{mac}"
        request = urllib.request.Request(url, b"", headers, method="PUT")
        request.add_unredirected_header("Content-Type", "")
        try:
            urllib.request.urlopen(request, timeout=5).close()  # noqa: S310
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from error
        except OSError:
            return False
        return True
