"""`paiton-run verify`: every digest, and every golden on every level that this machine runs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass

from paiton_artifacts.errors import PaitonError, UnsupportedHostError
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_artifacts.verify import verify_files
from paiton_runtime.boot import CPU, BootOptions, boot_bundle
from paiton_runtime.goldens import check_golden
from paiton_runtime.ledger import Ledger
from paiton_runtime.levels import cpu_flags, runnable_levels


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome for one thing: a file, or a golden on a level."""

    name: str
    error: PaitonError | None

    def as_json(self) -> dict[str, object]:
        """Returns name, ok and the error's message."""
        return {"name": self.name, "ok": self.error is None, "error": self.error.message if self.error else None}


def run(args: argparse.Namespace) -> int:
    """Prints one line, or one entry of the JSON object, per check; raises the first error at the end."""
    bundle = open_bundle(args.bundle)
    files = [Check(check.path, check.error) for check in verify_files(bundle, _progress(), strict=False)]
    # Code and plans that are not what was signed off are not run.
    goldens = [] if any(check.error for check in files) else _check_levels(bundle, args.threads)
    failed = [check.error for check in files + goldens if check.error]
    if args.json:
        lists = {"files": [c.as_json() for c in files], "goldens": [c.as_json() for c in goldens]}
        print(json.dumps({"bundle": str(args.bundle), "ok": not failed, **lists}, indent=2))
    else:
        for check in files + goldens:
            print(f"{'FAILED' if check.error else 'ok':<7} {check.name}")
    if failed:
        raise failed[0]
    return 0


def _check_levels(bundle: Bundle, threads: int | None) -> list[Check]:
    held = bundle.code_objects(CPU)
    levels = [level for level in runnable_levels(cpu_flags()) if level in held]
    if not levels:
        raise UnsupportedHostError(f"this machine runs none of the bundle's cpu levels: {', '.join(sorted(held))}")
    return [check for level in levels for check in _check_level(bundle, level, threads)]


def _check_level(bundle: Bundle, level: str, threads: int | None) -> list[Check]:
    goldens = bundle.manifest.goldens
    tokens = max((len(golden.prompt) + len(golden.steps) for golden in goldens), default=1)
    options = BootOptions(level=level, threads=threads, kv_tokens=tokens, golden_check=False)
    checks = []
    with boot_bundle(bundle, options, Ledger()) as model:
        for index, golden in enumerate(goldens):
            name = f"golden {index} on {CPU} {level}"
            try:
                check_golden(model, golden, name)
                checks.append(Check(name, None))
            except PaitonError as error:
                checks.append(Check(name, error))
    return checks


class _ProgressLine:
    """A line on stderr that shows how much has been verified."""

    def __init__(self) -> None:
        self._shown = -1

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // max(1, total)
        if percent != self._shown:
            self._shown = percent
            end = "\n" if done >= total else ""
            print(f"\rverifying {done >> 20} of {total >> 20} MiB ({percent} %)", end=end, file=sys.stderr, flush=True)


def _progress() -> _ProgressLine | None:
    return _ProgressLine() if sys.stderr.isatty() else None
