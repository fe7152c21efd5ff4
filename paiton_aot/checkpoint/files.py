"""Reads checkpoint files by position, never through a mapping: memory stays small, and a cut file is an error."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paiton_aot.sources.remote import remote_file
from paiton_artifacts.errors import CheckpointError, CheckpointFormatError

MAX_JSON_BYTES = 64 << 20
"""Largest configuration, index or tokenizer file that is parsed (the largest tokenizers in use have 35 MB)."""

MAX_NAME = 1024
"""Longest name of a tensor, in characters."""

MAX_READ = 1 << 30
"""One read of Linux returns at most 2 GiB - 4 KiB."""

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
        """Returns `size` bytes from `offset`, in a fresh array.

        Raises:
            CheckpointFormatError: the file ends before, or reading fails.
            StoreError: it is read from a store, which fails.
        """
        # Before anything is allocated: sizes come from the file itself.
        if offset + size > self.size:
            raise self._short(offset, size)
        buffer = np.empty(size, np.uint8)
        if self._remote is not None:
            self._remote.read_into(offset, buffer.data)
            return buffer
        done = 0
        while done < size:
            try:
                count = os.preadv(self._descriptor, [buffer[done : done + MAX_READ].data], offset + done)
            except OSError as error:
                raise CheckpointFormatError(
                    f"reading {self.path} at offset {offset + done} failed: {error.strerror}", hint="check the disk"
                ) from error
            if not count:
                raise self._short(offset, size)
            done += count
        return buffer

    def _short(self, offset: int, size: int) -> CheckpointFormatError:
        return CheckpointFormatError(
            f"{self.path} is truncated: {size} bytes at offset {offset} exceed its {self.size} bytes", hint=AGAIN
        )

    def close(self) -> None:
        """Closes the file; may be called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


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
