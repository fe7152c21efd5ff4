"""Temporary directories beside an output, that no crash leaves behind for long and no other build removes.

A build works in `.<name>.tmp-<pid>-<random>` next to its output and holds an flock on a file in it. The kernel drops
that lock when the process dies, however it dies, so the next build of the same output can tell a stale directory
(lock free) from a live one (lock held) without trusting process numbers, which are reused and differ by container.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from pathlib import Path

LOCK_NAME = ".lock"


class LockedDirectory:
    """A new temporary directory for `output`, on its file system, locked for as long as this process lives."""

    def __init__(self, output: Path) -> None:
        self.path, self._lock = _create(output)

    def renamed(self) -> None:
        """Gives up the lock without removing the directory, which is now elsewhere."""
        os.close(self._lock)

    def remove(self) -> None:
        """Removes the directory and everything in it, then gives up the lock."""
        try:
            remove_tree(self.path)
        finally:
            os.close(self._lock)


def remove_stale(output: Path) -> list[Path]:
    """Removes the temporary directories that dead builds of `output` left; returns which."""
    removed = []
    for path in output.parent.iterdir():
        if not path.name.startswith(_prefix(output)) or path.is_symlink() or not path.is_dir():
            continue
        lock = _try_lock(path, os.O_CREAT)
        if lock is None:
            continue
        try:
            remove_tree(path)
        finally:
            os.close(lock)
        removed.append(path)
    return removed


def remove_tree(path: Path) -> None:
    """Removes a directory and everything in it, although another process may be doing the same."""
    while path.exists():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue  # the other was quicker with one of the files


def _prefix(output: Path) -> str:
    return f".{output.name}.tmp-"


def _create(output: Path) -> tuple[Path, int]:
    while True:
        path = output.parent / f"{_prefix(output)}{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir()
        # Between mkdir and flock a starting build may take this directory for a stale one and remove it. Then the
        # lock fails or belongs to a file that is gone, and we start again under another name.
        lock = _try_lock(path, os.O_CREAT | os.O_EXCL)
        if lock is not None:
            return path, lock


def _try_lock(directory: Path, flags: int) -> int | None:
    """Locks a directory's lock file; None if another process holds it, or removed the directory meanwhile."""
    path = directory / LOCK_NAME
    try:
        lock = os.open(path, flags | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except (FileNotFoundError, FileExistsError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(path.stat(), os.fstat(lock)):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass  # held by a live build, or just removed by another cleaner: in both cases not ours
    except BaseException:
        os.close(lock)
        raise
    os.close(lock)
    return None
