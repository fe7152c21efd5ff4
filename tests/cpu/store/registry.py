"""Debian's `docker-registry`, a real OCI registry, as a process of its own."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cpu.store.server import Server, free_ports

USER, PASSWORD = "jonah", "swordfish"
HTPASSWD = f"{USER}:$2b$04$abcdefghijklmnopqrstuugIEnm3ZbWF6xb2GcoE3L1CoGJFMKtu.\n"  # bcrypt, the only kind it takes


class Registry(Server):
    """A registry with its data in a folder.

    Args:
        folder: for its data.
        auth: its configuration's `auth`; anybody may do anything without.
    """

    def __init__(self, folder: Path, auth: Mapping[str, object] | None = None) -> None:
        found = shutil.which("docker-registry")
        if found is None:
            pytest.skip("docker-registry is not installed: apt install docker-registry")
        super().__init__(folder)
        (self.port,) = free_ports(1)
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
        self._executable = found

    def command(self) -> list[str]:
        """Returns the command line that runs it."""
        return [self._executable, "serve", str(self.folder / "config.yml")]

    def answers(self) -> bool:
        """Whether it answers, be it that it wants a login."""
        try:
            urllib.request.urlopen(f"http://{self.host}/v2/", timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
        except OSError:
            return False
        return True
