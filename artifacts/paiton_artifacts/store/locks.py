"""Locks between processes: flock, which the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

from paiton_artifacts.errors import LockTimeoutError, StoreError

_POLL = 0.05


class FileLock:
    """A lock on a file that is created if need be. It stays, so that all who wait hold the same one.

    Args:
        path: of the file.
        shared: several holders at once, but none together with one that is not shared.
        timeout: seconds to wait; 0 only tries.
        waiting: called once, if there is something to wait for.

    Raises:
        LockTimeoutError: another process holds it for longer.
        StoreError: the file cannot be made.
    """

    def __init__(
        self, path: Path, *, shared: bool = False, timeout: float = 0.0, waiting: Callable[[], object] | None = None
    ) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise StoreError(
                f"{path}: {error.strerror}", hint="check its permissions, or set PAITON_CACHE to a folder of your own"
            ) from error
        try:
            self._acquire(fcntl.LOCK_SH if shared else fcntl.LOCK_EX, timeout, waiting)
        except BaseException:
            os.close(self._file)
            raise

    def release(self) -> None:
        """Gives the lock up."""
        os.close(self._file)

    def remove(self) -> None:
        """Removes the file, for good: only where nobody will need the lock again."""
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire(self, kind: int, timeout: float, waiting: Callable[[], object] | None) -> None:
        end = time.monotonic() + timeout
        told = False
        while True:
            try:
                fcntl.flock(self._file, kind | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise StoreError(
                        f"{self._path}: locking failed: {error.strerror}",
                        hint="put the cache on a file system that has flock (PAITON_CACHE)",
                    ) from error
            if time.monotonic() >= end:
                raise LockTimeoutError(
                    f"{self._path}: another process has held the lock for {timeout:.0f} s",
                    hint="wait for it, or end it; a lock of a dead process is free at once",
                )
            if waiting is not None and not told:
                told = True
                waiting()
            time.sleep(_POLL)
