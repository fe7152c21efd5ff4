"""How both commands end: errors as one line on stderr, one exit code per class of failure, never a traceback."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from paiton_artifacts.errors import PaitonError, UsageError


class CommandParser(argparse.ArgumentParser):
    """Reports wrong arguments like any other error: one line, with a hint."""

    def error(self, message: str) -> NoReturn:
        """Raises UsageError in place of printing the usage."""
        raise UsageError(message, hint=f"{self.prog} --help")


def read_text(file: Path, option: str) -> str:
    """Returns the text of a file that an option names.

    Raises:
        UsageError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint=f"{option} names a readable file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8", hint="convert it first") from error


def run(program: str, body: Callable[[], int]) -> int:
    """Runs the body of a command and returns its exit code.

    A SIGTERM leaves through an exception, so that temporaries are removed. With `PAITON_TRACEBACK` set, an error that
    nobody raised on purpose keeps its traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return body()
    except PaitonError as error:
        print(f"{program}: error: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read stdout has gone; the interpreter's flush at exit must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if os.environ.get("PAITON_TRACEBACK"):
            raise
        hint = "set PAITON_TRACEBACK=1 to see where"
        print(f"{program}: internal error: {type(error).__name__}: {error}; hint: {hint}", file=sys.stderr)  # noqa: T201
        return 1


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(143)
