"""One object store: the few operations that bundles need, each retried within bounds (`retry`).

This is the only module that imports obstore, and it does so when a store is opened: a boot from a local path must not
pay for it. A store must not be used before a fork (obstore's threads do not survive one); nothing here forks.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from paiton_artifacts.errors import FileSizeError, ObjectNotFoundError, PaitonError, StoreError
from paiton_artifacts.store.retry import Attempts, RetryPolicy

if TYPE_CHECKING:
    import obstore
    from obstore import Bytes as Buffer
    from obstore.store import LocalStore, MemoryStore, ObjectStore

PIECE_BYTES = 512 << 10
"""What a stream hands out at a time: big enough for hashing and writing to be quick, small enough to stay in cache."""

PART_BYTES = 8 << 20
"""Size of one part of a multipart upload. Objects up to this size go in one request."""

PARTS_AT_ONCE = 3
"""Parts of one upload in flight. Memory of a push: workers * (this + 1) * PART_BYTES."""

_CLIENT = {
    "connect_timeout": "10s",
    "read_timeout": "30s",
    # Of a whole request, its body included: a chunk of 64 MiB at 200 kB/s. A read that it cuts off is taken up there.
    "timeout": "330s",
}


class Readable(Protocol):
    """What bundles are read from: a `Store`, or a repository of a registry (`oci.registry`)."""

    url: str

    def read(self, key: str, limit: int) -> bytes:
        """See `Store.read`."""

    def pieces(self, key: str, size: int) -> Iterator[tuple[int, bytes]]:
        """See `Store.pieces`."""


ABSENT = "absent"
"""The condition of a write that there is nothing yet. Any other condition is the ETag of what is to be replaced."""

_T = TypeVar("_T")
_memory_stores: dict[str, MemoryStore] = {}


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """An object of a store: key, bytes, when the store's clock says it was written, and its ETag where it has one."""

    key: str
    size: int
    modified: datetime
    etag: str | None


class Store:
    """An object store, or a folder of one.

    Args:
        url: `address.parse_root` of it.
        create: make the folder of a `file` store that does not exist yet.
        retry: how patient to be; by default as the environment says.
        stop: once set, operations that wait for a better time give up.

    Raises:
        StoreError: the environment does not configure such a store.
    """

    def __init__(
        self,
        url: str,
        *,
        create: bool = False,
        retry: RetryPolicy | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.url = url
        self._retry = retry or RetryPolicy.from_environment()
        self._stop = stop
        self._store = _open(url, create=create)

    @property
    def writable(self) -> bool:
        """False for plain HTTP servers."""
        return not self.url.startswith(("http://", "https://"))

    def read(self, key: str, limit: int) -> bytes:
        """Returns a small object whole; one of more than `limit` bytes is refused before it is read.

        Raises:
            ObjectNotFoundError: there is none.
            FileSizeError: it is larger than `limit`.
            StoreError: the store fails.
        """
        import obstore  # noqa: PLC0415  (lazy, as all of this module's uses)

        def attempt() -> bytes:
            result = obstore.get(self._store, key)
            size = result.meta["size"]
            if size > limit:
                raise FileSizeError(f"{self.url}/{key}: {size} bytes, more than {limit}", hint="this is no bundle's")
            return bytes(result.bytes())

        return self._run("reading", key, attempt)

    def pieces(self, key: str, size: int) -> Iterator[tuple[int, bytes]]:
        """Yields an object of `size` bytes in pieces, each with its offset; what fails in between is taken up there.

        Where the server cannot send a part of an object, it starts again: a piece at offset 0 voids all before it.

        Raises:
            ObjectNotFoundError: there is no such object.
            FileSizeError: it has another size.
            StoreError: the store fails.
        """
        import obstore  # noqa: PLC0415
        from obstore.exceptions import NotSupportedError  # noqa: PLC0415

        attempts = self._attempts("reading", key)
        offset = furthest = 0
        while True:
            try:
                result = obstore.get(self._store, key, options={"range": (offset, size)} if offset else {})
                self._require_size(key, result.meta["size"], size)
                for piece in result.stream(min_chunk_size=PIECE_BYTES):
                    yield offset, piece
                    offset += len(piece)
                    if offset > furthest:
                        furthest = offset
                        attempts.progressed()
                if offset == size:
                    return
                attempts.failed(EOFError(f"the answer ended after {offset} of {size} bytes"))
            except NotSupportedError as error:
                if not offset:
                    attempts.failed(error)
                offset = 0
            except Exception as error:  # noqa: BLE001  (sorted out there)
                attempts.failed(error)

    def info(self, key: str) -> ObjectInfo | None:
        """Returns what is known of an object; None where there is none.

        Raises:
            StoreError: the store fails.
        """
        import obstore  # noqa: PLC0415

        try:
            return self._run("looking for", key, lambda: _info(obstore.head(self._store, key)))
        except ObjectNotFoundError:
            return None

    def read_range(self, key: str, offset: int, length: int, *, size: int, etag: str | None = None) -> Buffer:
        """Returns a part of an object of `size` bytes, as a buffer.

        Args:
            key: where.
            offset: of the first byte.
            length: bytes, at least one.
            size: that the object has.
            etag: that it has, if the store said so; then one that was replaced is an error.

        Raises:
            ObjectNotFoundError: there is no such object.
            FileSizeError: it has another size.
            StoreError: the store fails, or the object was replaced.
        """
        import obstore  # noqa: PLC0415
        from obstore.exceptions import PreconditionError  # noqa: PLC0415

        options: Any = {"range": (offset, offset + length)}
        if etag is not None and not etag.startswith("W/"):  # a weak one never matches (RFC 9110, 8.8.3.2)
            options["if_match"] = etag

        def attempt() -> Buffer:
            try:
                result = obstore.get(self._store, key, options=options)
            except PreconditionError as error:
                raise StoreError(f"{self.url}/{key} was replaced while it was read", hint="run it again") from error
            self._require_size(key, result.meta["size"], size)
            data = result.bytes()
            if len(data) != length:
                raise EOFError(f"the answer ended after {len(data)} of {length} bytes")
            return data

        return self._run("reading", key, attempt)

    def size(self, key: str) -> int | None:
        """Returns the bytes of an object; None where there is none.

        Raises:
            StoreError: the store fails.
        """
        info = self.info(key)
        return None if info is None else info.size

    def put(self, key: str, data: bytes, condition: str | None = None) -> bool:
        """Writes a small object in one step.

        Args:
            key: where.
            data: its bytes.
            condition: `ABSENT`, or the ETag of what is to be replaced. Stores that do not know conditions write all the
                same, or raise StoreError.

        Returns:
            False where the condition did not hold and nothing was written.

        Raises:
            StoreError: the store fails, or cannot be written.
        """
        import obstore  # noqa: PLC0415
        from obstore.exceptions import AlreadyExistsError, PreconditionError  # noqa: PLC0415

        self._require_writable()
        mode: Any = "overwrite" if condition is None else "create" if condition == ABSENT else {"e_tag": condition}

        def attempt() -> bool:
            try:
                obstore.put(self._store, key, data, mode=mode, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
            return True

        return self._run("writing", key, attempt)

    def put_pieces(self, key: str, size: int, pieces: Callable[[], Iterable[bytes]]) -> None:
        """Writes an object in one step, in several requests at once if it is large.

        Args:
            key: where.
            size: in bytes.
            pieces: called for every attempt; what it yields is uploaded while it goes on. An error that it raises
                leaves nothing behind.

        Raises:
            StoreError: the store fails, or cannot be written.
        """
        import obstore  # noqa: PLC0415

        self._require_writable()

        def attempt() -> None:
            if size <= PART_BYTES:
                obstore.put(self._store, key, b"".join(pieces()), use_multipart=False)
            else:
                parts: Any = {"chunk_size": PART_BYTES, "max_concurrency": PARTS_AT_ONCE}
                obstore.put(self._store, key, iter(pieces()), use_multipart=True, **parts)

        self._run("writing", key, attempt)

    def objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yields the objects below a folder.

        Raises:
            StoreError: the store fails, or cannot list (plain HTTP).
        """
        import obstore  # noqa: PLC0415

        if not self.writable:
            raise StoreError(f"{self.url}: a plain HTTP server cannot list", hint="use the URL of the store behind it")

        def attempt() -> list[ObjectInfo]:
            return [_info(meta) for metas in obstore.list(self._store, prefix, chunk_size=1000) for meta in metas]

        yield from self._run("listing", prefix, attempt)

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; those that are gone already do not matter.

        Raises:
            StoreError: the store fails, or cannot be written.
        """
        import obstore  # noqa: PLC0415

        self._require_writable()
        for start in range(0, len(keys), 1000):
            some = keys[start : start + 1000]

            def attempt(some: Sequence[str] = some) -> None:
                try:
                    obstore.delete(self._store, some)
                except FileNotFoundError:
                    for key in some:  # a local store stops at the first that is missing
                        try:
                            obstore.delete(self._store, key)
                        except FileNotFoundError:
                            continue

            self._run("deleting", some[0], attempt)

    def _require_size(self, key: str, found: int, size: int) -> None:
        if found != size:
            raise FileSizeError(f"{self.url}/{key}: {found} bytes instead of {size}", hint="push the bundle again")

    def _require_writable(self) -> None:
        if not self.writable:
            raise StoreError(f"{self.url}: a plain HTTP server is read only", hint="push to s3, gs, az or file")

    def _run(self, verb: str, key: str, attempt: Callable[[], _T]) -> _T:
        attempts = self._attempts(verb, key)
        while True:
            try:
                return attempt()
            except Exception as error:  # noqa: BLE001  (sorted out there)
                attempts.failed(error)

    def _attempts(self, verb: str, key: str) -> Attempts:
        return Attempts(f"{verb} {self.url}/{key}", self._retry, lambda: self._asked_delay(key), self._stop)

    def _asked_delay(self, key: str) -> float | None:
        """Asks once more for an object's headers, for obstore keeps Retry-After to itself."""
        import obstore  # noqa: PLC0415
        from obstore.store import AzureStore, GCSStore, S3Store  # noqa: PLC0415

        from paiton_artifacts.store.retry_after import retry_after  # noqa: PLC0415  (http.client is heavy)

        try:
            if isinstance(self._store, (S3Store, GCSStore, AzureStore)):
                return retry_after(obstore.sign(self._store, "HEAD", key, timedelta(minutes=5)))
            return None if self.writable else retry_after(f"{self.url}/{key}")
        except Exception:  # noqa: BLE001  (credentials that cannot sign URLs, say: then our own delays must do)
            return None


def _info(meta: obstore.ObjectMeta) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], meta["last_modified"], meta["e_tag"])


def _open(url: str, *, create: bool) -> ObjectStore:
    """Opens a store as the environment configures it."""
    try:
        from obstore.store import MemoryStore, from_url  # noqa: PLC0415
    except ImportError as error:
        raise StoreError(
            f"{url}: the Python package obstore is missing: {error}", hint="pip install 'obstore>=0.12,<0.13'"
        ) from error

    parts = urlsplit(url)
    if parts.scheme == "memory":
        return _memory_stores.setdefault(url, MemoryStore())
    try:
        if parts.scheme == "file":
            return _open_folder(parts.netloc, unquote(parts.path), create=create)
        options: Any = {**_CLIENT, "allow_http": _plain_http(parts.scheme)}
        return from_url(url, client_options=options, retry_config={"max_retries": 0})
    except PaitonError:
        raise
    except Exception as error:
        reason = str(error).split("\n", 1)[0]
        raise StoreError(f"{url}: {reason}", hint="check the URL, and the store's variables (docs/store.md)") from error


def _open_folder(host: str, path: str, *, create: bool) -> LocalStore:
    from obstore.store import LocalStore  # noqa: PLC0415

    if host:
        raise StoreError(f"file://{host}{path}: names a host", hint="write three slashes: file:///path")
    if not create and not Path(path).is_dir():
        raise StoreError(f"file://{path}: there is no such folder", hint="check the URL, or push a bundle to it")
    return LocalStore(path, mkdir=create)


def _plain_http(scheme: str) -> bool:
    """Says whether somebody who configures this machine wants requests without TLS."""
    endpoints = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
    return scheme == "http" or any(os.environ.get(name, "").startswith("http://") for name in endpoints)
