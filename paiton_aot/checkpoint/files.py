"""Reads checkpoint files by position, never through a mapping: memory stays small, and a cut file is an error."""

from __future__ import annotations

import json
import mmap
import os
from collections import Counter
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from paiton_aot.checkpoint.read_buffers import ReadBuffers
from paiton_aot.sources.remote import remote_file
from paiton_artifacts.errors import CheckpointError, CheckpointFormatError
from paiton_runtime.loader import CACHED_SHARE, open_direct, residency

MAX_JSON_BYTES = 64 << 20
"""Largest configuration, index or tokenizer file that is parsed (the largest tokenizers in use have 35 MB)."""

MAX_NAME = 1024
"""Longest name of a tensor, in characters."""

MAX_READ = 1 << 30
"""One read of Linux returns at most 2 GiB - 4 KiB."""

DIRECT_ALIGNMENT = 4096
"""Of addresses, offsets and sizes of reads around the page cache; no block device wants more."""

DIRECT_BYTES = 1 << 20
"""Reads of so many bytes, or more, go around the page cache if the file is not in it."""

AGAIN = "the file is damaged or incomplete: fetch it again"


def is_name(name: str) -> bool:
    """Returns whether a tensor's name is one that a message can show on its line."""
    return 0 < len(name) <= MAX_NAME and name.isprintable()


class CheckpointFile:
    """An open file that is read at given positions; may be shared between threads.

    Attributes:
        path: where it is.
        size: its bytes when it was opened.

    Raises:
        CheckpointFormatError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._direct: int | None = None
        self._lock = Lock()
        self._buffers = ReadBuffers()
        self._remote = remote_file(path)
        if self._remote is not None:
            self.size = self._remote.size
            return
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointFormatError(
                f"cannot open {path}: {error.strerror}", hint="check the path and its permissions"
            ) from error
        self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Returns `size` bytes from `offset`, in an array that is the caller's alone.

        Raises:
            CheckpointFormatError: the file ends before, or reading fails.
            StoreError: it is read from a store, which fails.
        """
        # Before anything is allocated: sizes come from the file itself.
        if offset + size > self.size:
            raise self._short(offset, size)
        if size >= DIRECT_BYTES and (direct := self._around_cache()) >= 0:
            return self._read_direct(direct, offset, size)
        buffer = self._buffers.take(size) if size >= DIRECT_BYTES else np.empty(size, np.uint8)
        if self._remote is not None:
            self._remote.read_into(offset, buffer.data)
            return buffer
        self._fill(self._descriptor, buffer, offset, size)
        return buffer

    def _read_direct(self, descriptor: int, offset: int, size: int) -> NDArray[np.uint8]:
        """Reads whole pages around the wanted bytes, which takes a tenth of a buffered read's processor time."""
        before = offset % DIRECT_ALIGNMENT
        needed = -(-(before + size) // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT
        memory = self._buffers.take(needed)
        self._fill(descriptor, memory, offset - before, before + size)
        return memory[before : before + size]

    def _fill(self, descriptor: int, buffer: NDArray[np.uint8], offset: int, size: int) -> None:
        """Fills a buffer with bytes from `offset`: at least `size` of them."""
        done = 0
        while done < size:
            try:
                count = os.preadv(descriptor, [buffer[done : done + MAX_READ].data], offset + done)
            except OSError as error:
                raise CheckpointFormatError(
                    f"reading {self.path} at offset {offset + done} failed: {error.strerror}", hint="check the disk"
                ) from error
            if not count:
                raise self._short(offset, size)
            done += count

    def _around_cache(self) -> int:
        """Returns a descriptor for reads around the page cache; -1 where they do not work or the cache has the file.

        Found out at the first large read: before that, the whole file may have been read for its digest.
        """
        with self._lock:
            if self._direct is None:
                self._direct = -1
                if self._remote is None and residency(self._descriptor, self.size) < CACHED_SHARE:
                    self._direct = _that_reads(open_direct(self._descriptor))
            return self._direct

    def _short(self, offset: int, size: int) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"{self.path} is truncated: {size} bytes at offset {offset} exceed its {self.size} bytes", hint=AGAIN
        )

    def close(self) -> None:
        """Closes the file; may be called again."""
        for descriptor in (self._descriptor, -1 if self._direct is None else self._direct):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._direct = -1


def _that_reads(direct: int) -> int:
    """Returns a descriptor for reads around the page cache, or -1 where the file system refuses those."""
    if direct >= 0:
        with mmap.mmap(-1, DIRECT_ALIGNMENT) as page:
            try:
                os.preadv(direct, [page], 0)
            except OSError:
                os.close(direct)
                return -1
    return direct


def read_small_file(path: Path) -> bytes:
    """Returns the bytes of a file that has at most `MAX_JSON_BYTES`.

    Raises:
        CheckpointFormatError: it is larger, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise CheckpointFormatError(f"cannot read {path}: {error.strerror}", hint=AGAIN) from error
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointFormatError(f"{path} has more than {MAX_JSON_BYTES} bytes", hint=AGAIN)
    return data


def parse_object(
    data: bytes, what: str, *, duplicate: type[CheckpointError] = CheckpointFormatError
) -> dict[str, object]:
    """Parses a JSON object.

    Args:
        data: UTF-8 text.
        what: names it in errors.
        duplicate: what to raise where a key occurs twice in an object.

    Raises:
        CheckpointFormatError: `data` is anything else.
    """
    try:
        parsed = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except _DuplicateKeyError as error:
        raise duplicate(f"{what} has key {str(error)[:80]!r} twice", hint=AGAIN) from error
    # ValueError: no JSON, no UTF-8, or an integer of thousands of digits. RecursionError: deep nesting.
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointFormatError(f"{what} is not valid JSON: {reason}", hint=AGAIN) from error
    if not isinstance(parsed, dict):
        raise CheckpointFormatError(f"{what} holds a JSON {type(parsed).__name__}, expected an object", hint=AGAIN)
    return parsed


class _DuplicateKeyError(Exception):
    """An object of a JSON text has the same key twice; json itself would keep the last."""


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise _DuplicateKeyError(key)
    return result


def read_object(path: Path) -> dict[str, object]:
    """Reads a small file that holds a JSON object.

    Raises:
        CheckpointFormatError: as `read_small_file` and `parse_object`.
    """
    return parse_object(read_small_file(path), str(path))
