"""A small server of the part of the Hugging Face hub's API that its own client calls to fetch a model."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT, OLDER = "a" * 40, "b" * 40
TOKEN = "hf_secret"  # noqa: S105


class HubServer:
    """Serves directories as models.

    Attributes:
        models: directory of each commit of each model, by id.
        revisions: commits of branches and tags; every model has the same ones.
        gated: ids that only the token may read.
        paths: of the requests so far.
        failures: status to answer with, as long as there are any.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Path]] = {}
        self.revisions = {"main": COMMIT, "v1.0": OLDER}
        self.gated: set[str] = set()
        self.paths: list[str] = []
        self.failures: list[int] = []
        hub = self

        class Handler(_Handler):
            owner = hub

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def running() -> Iterator[HubServer]:
    """Yields a hub without models, and ends it."""
    hub = HubServer()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: HubServer

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, path = self.owner, unquote(urlsplit(self.path).path)
        hub.paths.append(path)
        if hub.failures:
            self._send(hub.failures.pop(), b"")
            return
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/(.+?)(/.*)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = api or file
        model, revision = (found[1], found[3] if api else found[2]) if found else ("", "")
        commits = hub.models.get(model)
        commit = hub.revisions.get(revision, revision)
        if commits is None:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif model in hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}" and file:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif commit not in commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif api:
            self._describe(model, commit, commits[commit], tree=api[2] == "tree")
        elif file and (commits[commit] / file[3]).is_file():
            data = (commits[commit] / file[3]).read_bytes()
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            self._send(200, data, {"X-Repo-Commit": commit, "ETag": etag, "Accept-Ranges": "bytes"})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _describe(self, model: str, commit: str, folder: Path, *, tree: bool) -> None:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if tree:
            told: object = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "c" * 40} for file in files
            ]
        else:
            siblings = [{"rfilename": file.name} for file in files]
            told = {"id": model, "modelId": model, "sha": commit, "private": False, "siblings": siblings}
        self._send(200, json.dumps(told).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        given = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if given and status == 200:
            start, end = int(given[1]), int(given[2] or len(body) - 1)
            headers = {**(headers or {}), "Content-Range": f"bytes {start}-{end}/{len(body)}"}
            status, body = 206, body[start : end + 1]
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
