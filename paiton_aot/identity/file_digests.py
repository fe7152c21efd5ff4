"""SHA-256 of checkpoint files, computed once: a file that has not changed is not read again.

A digest is remembered with the file's device, inode, size, and times of change of content and of inode (ctime, which no
program can set). One that changed within the last seconds is not remembered: another change within the same tick of the
file system's clock would go unnoticed.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from paiton_aot.sources.remembered import recall, remember
from paiton_aot.sources.remote import RemoteFile, remote_file
from paiton_artifacts.errors import CheckpointFormatError

_SETTLED_NS = 3_000_000_000
"""Age from which on a file's times tell versions apart: the coarsest file systems count in steps of two seconds."""

_STEP = 64 << 20

State = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime in nanoseconds."""


class FileDigests:
    """Digests files, and remembers the results below a cache directory.

    Args:
        cache_dir: results are kept in its folder `digests`.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / "digests"
        self._states: dict[Path, State] = {}
        self._remote: list[RemoteFile] = []

    def digest_all(self, files: Mapping[str, Path], advance: Callable[[int], object]) -> dict[str, str]:
        """Returns the SHA-256 of each file in lower-case hex, by its name.

        Args:
            files: by name.
            advance: called with the bytes of each part that is done, read or remembered; from several threads.

        Raises:
            CheckpointFormatError: a file cannot be read, or changed meanwhile.
            StoreError: a file is in a store, which fails.
        """
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = pool.map(lambda path: self._digest(path, advance), files.values())
            return dict(zip(files, found, strict=True))

    def check_unchanged(self) -> None:
        """Checks that the files are still those that were digested.

        Raises:
            CheckpointFormatError: one was changed or replaced.
        """
        for remote in self._remote:
            remote.check_unchanged()
        for path, state in self._states.items():
            try:
                now = _state(path.stat())
            except OSError:
                now = None
            if now != state:
                raise _changed(path)

    def _digest(self, path: Path, advance: Callable[[int], object]) -> str:
        remote = remote_file(path)
        if remote is not None:
            self._remote.append(remote)
            return remote.digest(self._folder, advance)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointFormatError(
                f"cannot open {path}: {error.strerror}", hint="check the path and its permissions"
            ) from error
        try:
            state = _state(os.fstat(descriptor))
            self._states[path] = state
            known = {"stat": list(state)}
            name = str(path.resolve())
            digest = recall(self._folder, name, known)
            if digest is not None:
                advance(state[2])
                return digest
            digest = _sha256(path, descriptor, state[2], advance)
            if _state(os.fstat(descriptor)) != state:
                raise _changed(path)
        finally:
            os.close(descriptor)
        if time.time_ns() - max(state[3], state[4]) >= _SETTLED_NS:
            remember(self._folder, name, known, digest)
        return digest


def _state(status: os.stat_result) -> State:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _sha256(path: Path, descriptor: int, size: int, advance: Callable[[int], object]) -> str:
    """Returns a file's digest; in one thread, as SHA-256 cannot be divided."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    done = reported = 0
    while done < size:
        count = os.preadv(descriptor, [buffer[: size - done]], done)
        if not count:
            raise _changed(path)
        digest.update(buffer[:count])
        done += count
        if done - reported >= _STEP or done == size:
            advance(done - reported)
            reported = done
    return digest.hexdigest()


def _changed(path: Path) -> CheckpointFormatError:
    return CheckpointFormatError(f"{path} changed while it was read", hint="build again once nothing writes to it")
