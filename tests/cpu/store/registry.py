"""Debian's `docker-registry`, a real OCI registry, as a process of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

USER, PASSWORD = "jonah", "swordfish"
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuugIEnm3ZbWF6xb2GcoE3L1CoGJFMKtu.\n"  # bcrypt, the only kind it takes


class Registry:
    """A registry with its data in a folder.

    Args:
        folder: for its data.
        auth: its configuration's `auth`; anybody may do anything without.
    """

    def __init__(self, folder: Path, auth: Mapping[str, object] | None = None) -> None:
        found = shutil.which("docker-registry")
        if found is None:
            pytest.skip("docker-registry is not installed: apt install docker-registry")
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.host = f"127.0.0.1:{self.port}"
        config = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
            **({"auth": auth} if auth else {}),
        }
        # JSON is YAML.
        (folder / "config.yml").write_text(json.dumps(config))
        self._command = [found, "serve", str(folder / "config.yml")]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; returns when it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self.folder)
        end = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://{self.host}/v2/", timeout=5).close()
            except urllib.error.HTTPError as error:
                error.close()
                return  # it wants a login
            except OSError as error:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from error
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """Ends it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
