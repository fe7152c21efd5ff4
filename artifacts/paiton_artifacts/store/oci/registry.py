"""One repository of an OCI registry, with what the rest of `store` needs of it.

It is read by the same keys as an object store: blobs are blobs, a bundle's manifest is the blob of its digest, a tag
holds what its artifact says. https://github.com/opencontainers/distribution-spec/blob/main/spec.md has the protocol.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import urljoin, urlsplit

from paiton_artifacts.errors import FileSizeError, ObjectNotFoundError, StoreError
from paiton_artifacts.store.client import PART_BYTES, PIECE_BYTES
from paiton_artifacts.store.keys import BLOBS, MANIFESTS, TAGS, blob_key
from paiton_artifacts.store.oci.artifact import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Artifact, read_artifact
from paiton_artifacts.store.oci.session import BodyTooLargeError, Session
from paiton_artifacts.store.oci.transport import Answer
from paiton_artifacts.store.retry import RetryPolicy

_MAX_SMALL = 1 << 16
_MAX_TAGS = 1 << 22
_BYTES = "application/octet-stream"
_EMPTY = blob_key(hashlib.sha256(b"").hexdigest())


class Registry:
    """A repository.

    Args:
        url: `oci://HOST[:PORT]/REPOSITORY`.
        retry: how patient to be; by default as the environment says.
        stop: once set, operations that wait for a better time give up.
    """

    def __init__(self, url: str, *, retry: RetryPolicy | None = None, stop: threading.Event | None = None) -> None:
        self.url = url
        parts = urlsplit(url)
        self._path = f"/v2{parts.path}"
        self._session = Session(url, parts.netloc, retry or RetryPolicy.from_environment(), stop)
        self._found: dict[str, Artifact] = {}
        self._largest_body: int | None = None

    def read(self, key: str, limit: int) -> bytes:
        """Returns what an object store would hold at a key, whole.

        Raises:
            ObjectNotFoundError: there is none.
            FileSizeError: it is larger than `limit`.
            StoreError: the registry fails.
        """
        folder, _, name = key.rpartition("/")
        digest, _, companion = name.partition(".")
        if folder.partition("/")[0] == TAGS:
            return f"sha256:{self.find(name).bundle}\n".encode()
        if folder not in (BLOBS, MANIFESTS) or (companion and folder == BLOBS):
            raise self._absent(key)
        if companion:
            layer = self._artifact_of(digest).companions.get(companion)
            if layer is None:
                raise self._absent(key)
            digest = layer.digest
        return self._read_blob(digest, limit)

    def pieces(self, key: str, size: int) -> Iterator[tuple[int, bytes]]:
        """Yields a blob of `size` bytes in pieces with their offsets; as `client.Store.pieces`.

        Raises:
            ObjectNotFoundError: there is no such blob.
            FileSizeError: it has another size.
            StoreError: the registry fails.
        """
        digest = key.rpartition("/")[2]
        failures = self._session.failures(f"reading {self.url}@sha256:{digest}")
        offset = furthest = 0
        while offset < size:
            try:
                headers = {"Range": f"bytes={offset}-{size - 1}"} if offset else {}
                with self._session.send("GET", self._blob(digest), headers=headers, accept=(200, 206)) as answer:
                    offset = self._require_extent(answer, offset, size)
                    for piece in answer.stream(PIECE_BYTES):
                        yield offset, piece
                        offset += len(piece)
                        if offset > furthest:
                            furthest = offset
                            failures.progressed()
            except Exception as error:  # noqa: BLE001  (sorted out there)
                failures.failed(error)

    def size(self, key: str) -> int | None:
        """Returns the bytes of a blob; None where there is none.

        Raises:
            StoreError: the registry fails.
        """
        if key == _EMPTY:
            return 0  # never asked for, nor uploaded: some registries refuse it

        def attempt() -> int:
            with self._session.send("HEAD", self._blob(key.rpartition("/")[2])) as answer:
                answer.read(0)
            return int(answer.headers.get("Content-Length") or 0)

        try:
            return self._session.run(f"looking for {key}", attempt)
        except ObjectNotFoundError:
            return None

    def put_pieces(self, key: str, size: int, pieces: Callable[[], Iterable[bytes]]) -> None:
        """Uploads a blob; the registry compares its digest before it is there. As `client.Store.put_pieces`.

        Raises:
            StoreError: the registry fails, or refuses it.
        """
        digest = key.rpartition("/")[2]

        def attempt() -> None:
            if self._largest_body is None or size < self._largest_body:
                try:
                    self._upload_whole(digest, size, pieces)
                except BodyTooLargeError:
                    self._largest_body = size
                else:
                    return
            self._upload_in_parts(digest, pieces)

        self._session.run(f"writing {key}", attempt)

    def put_blob(self, data: bytes) -> bool:
        """Uploads a small blob unless it is there; returns whether it was not.

        Raises:
            StoreError: the registry fails.
        """
        key = f"{BLOBS}/{hashlib.sha256(data).hexdigest()}"
        if self.size(key) == len(data):
            return False
        self.put_pieces(key, len(data), lambda: (data,))
        return True

    def find(self, reference: str) -> Artifact:
        """Returns the artifact of a tag, or of `sha256:<hex>`: the digest of an OCI manifest.

        Raises:
            ObjectNotFoundError: there is none.
            ManifestError: it is none of ours.
            StoreError: the registry fails.
        """
        data = self.read_manifest(reference)
        artifact = read_artifact(data, f"{self.url}:{reference}")
        self._found[artifact.bundle] = artifact
        return artifact

    def find_pinned(self, digest: str) -> str:
        """Returns the bundle that a digest pins: its own, or that of an OCI manifest with it.

        Raises:
            ObjectNotFoundError: the repository has neither.
            StoreError: the registry fails.
        """
        try:
            self.find(digest_tag(digest))
        except ObjectNotFoundError:
            # Not the other way round: asked for a blob as if it were a manifest, some registries fail.
            if self.size(blob_key(digest)) is None:
                return self.find(f"sha256:{digest}").bundle
        return digest

    def read_manifest(self, reference: str) -> bytes:
        """Returns an OCI manifest by tag or digest; see `find`."""

        def attempt() -> bytes:
            path = f"{self._path}/manifests/{reference}"
            with self._session.send("GET", path, headers={"Accept": MANIFEST_TYPE}) as answer:
                return answer.read(MAX_MANIFEST_BYTES)

        data = self._session.run(f"reading {reference}", attempt)
        algorithm, colon, digest = reference.partition(":")
        if colon and (algorithm != "sha256" or hashlib.sha256(data).hexdigest() != digest):
            raise StoreError(f"{self.url}@{reference}: the registry has other bytes", hint="push the bundle again")
        return data

    def put_manifest(self, reference: str, data: bytes) -> None:
        """Writes an OCI manifest, whose blobs must be there, under a tag.

        Raises:
            StoreError: the registry fails, or refuses it.
        """

        def attempt() -> None:
            headers = {"Content-Type": MANIFEST_TYPE}
            with self._session.send(
                "PUT", f"{self._path}/manifests/{reference}", headers=headers, body=data, accept=(201,)
            ):
                pass

        self._session.run(f"writing {reference}", attempt)

    def tags(self) -> list[str]:
        """Returns all tags of the repository, sorted.

        Raises:
            ObjectNotFoundError: there is no such repository.
            StoreError: the registry fails.
        """
        found: set[str] = set()
        path: str | None = f"{self._path}/tags/list?n=1000"
        while path is not None:
            data, following = self._session.run("listing", lambda path=path: self._page(path))  # type: ignore[misc]
            try:
                names = json.loads(data)["tags"] or []
                found.update(name for name in names if isinstance(name, str))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise StoreError(f"{self.url}: no list of tags in its answer", hint="is this a registry?") from error
            path = following if following != path else None
        return sorted(found)

    def _page(self, path: str) -> tuple[bytes, str | None]:
        with self._session.send("GET", path) as answer:
            data = answer.read(_MAX_TAGS)
        link = answer.headers.get("Link", "")
        following = link.partition("<")[2].partition(">")[0] if 'rel="next"' in link else ""
        return data, urljoin(answer.url, following) if following else None

    def _artifact_of(self, bundle: str) -> Artifact:
        """Returns the artifact that was found last for a bundle, else the one that a push has left for its digest."""
        if bundle not in self._found:
            try:
                self.find(digest_tag(bundle))
            except ObjectNotFoundError:
                self._found[bundle] = Artifact(bundle, {})
        return self._found.get(bundle) or Artifact(bundle, {})

    def _read_blob(self, digest: str, limit: int) -> bytes:
        def attempt() -> bytes:
            with self._session.send("GET", self._blob(digest)) as answer:
                size = int(answer.headers.get("Content-Length") or 0)
                if size > limit:
                    raise FileSizeError(f"{self.url}@sha256:{digest}: {size} bytes, more than {limit}")
                return answer.read(limit)

        return self._session.run(f"reading sha256:{digest}", attempt)

    def _upload_whole(self, digest: str, size: int, pieces: Callable[[], Iterable[bytes]]) -> None:
        location, _ = self._begin_upload()
        headers = {"Content-Length": str(size), "Content-Type": _BYTES}
        with self._session.send(
            "PUT", _with_digest(location, digest), headers=headers, body=pieces, accept=(201,)
        ) as answer:
            answer.read(_MAX_SMALL)

    def _upload_in_parts(self, digest: str, pieces: Callable[[], Iterable[bytes]]) -> None:
        location, least = self._begin_upload()
        offset = 0
        for part in _parts(pieces(), max(PART_BYTES, least)):
            headers = {"Content-Range": f"{offset}-{offset + len(part) - 1}", "Content-Type": _BYTES}
            with self._session.send("PATCH", location, headers=headers, body=part, accept=(202,)) as answer:
                answer.read(_MAX_SMALL)
            location = urljoin(answer.url, answer.headers.get("Location", location))
            offset += len(part)
        with self._session.send("PUT", _with_digest(location, digest), body=b"", accept=(201,)) as answer:
            answer.read(_MAX_SMALL)

    def _begin_upload(self) -> tuple[str, int]:
        """Returns where to send a blob, and the bytes that a part needs to have unless it is the last."""
        path = f"{self._path}/blobs/uploads/"
        with self._session.send("POST", path, body=b"", accept=(202,)) as answer:
            answer.read(_MAX_SMALL)
        least = answer.headers.get("OCI-Chunk-Min-Length", "0")
        where = urljoin(answer.url, answer.headers.get("Location", ""))
        return where, min(int(least), 64 << 20) if least.isdecimal() else 0

    def _require_extent(self, answer: Answer, offset: int, size: int) -> int:
        """Returns the offset at which an answer begins; raises unless the blob has `size` bytes."""
        start, total = 0, answer.headers.get("Content-Length", "")
        if answer.status == 206:
            extent, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
            start = offset if extent.startswith(f"{offset}-") else -1
        if start < 0 or total != str(size):
            raise FileSizeError(
                f"{answer.url}: {total or 'unknown'} bytes instead of {size}", hint="push the bundle again"
            )
        return start

    def _blob(self, digest: str) -> str:
        return f"{self._path}/blobs/sha256:{digest}"

    def _absent(self, key: str) -> ObjectNotFoundError:
        return ObjectNotFoundError(f"{self.url}: has no {key}", hint="check the URL, or push the bundle again")


def digest_tag(bundle: str) -> str:
    """Returns the tag that keeps a bundle in a registry, whatever becomes of its other tags."""
    return f"sha256-{bundle}"


def _with_digest(location: str, digest: str) -> str:
    return f"{location}{'&' if '?' in location else '?'}digest=sha256:{digest}"


def _parts(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yields the same bytes in parts of `size`, the last one smaller."""
    part = bytearray()
    for piece in pieces:
        part += piece
        while len(part) >= size:
            yield bytes(part[:size])
            del part[:size]
    if part:
        yield bytes(part)
