"""`paiton-run verify`: every file, the signature, and every golden on every target and level that this machine runs."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paiton_artifacts.errors import PaitonError, UnsupportedHostError, UsageError
from paiton_artifacts.layout import MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_artifacts.record import dataclass, field
from paiton_artifacts.trust.companions import check_companions, unlisted_files
from paiton_artifacts.trust.policy import Policy, Trust, read_signature
from paiton_artifacts.verify import verify_files
from paiton_runtime.boot import CPU, BootOptions, boot_bundle
from paiton_runtime.commands.trust_arguments import policy_of
from paiton_runtime.goldens import check_golden
from paiton_runtime.ledger import Ledger
from paiton_runtime.levels import cpu_flags, runnable_levels
from paiton_runtime.model import Model


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome for one thing: a file, a golden on a level or target, a captured plan."""

    name: str
    error: PaitonError | None

    def as_json(self) -> dict[str, object]:
        """Returns name, ok and the error's message."""
        return {"name": self.name, "ok": self.error is None, "error": self.error.message if self.error else None}


@dataclass(frozen=True, slots=True)
class Checks:
    """All outcomes, in the order of the report."""

    files: list[Check]
    signature: Check | None = None  # None where there is nothing to check, or no key to check it with
    goldens: list[Check] = field(default_factory=list)
    captures: list[Check] = field(default_factory=list)

    def all(self) -> list[Check]:
        """Returns them as one list."""
        signature = [] if self.signature is None else [self.signature]
        return signature + self.files + self.goldens + self.captures

    def failed(self) -> list[PaitonError]:
        """Returns what went wrong."""
        return [check.error for check in self.all() if check.error]


def attempt(name: str, work: Callable[[], object]) -> Check:
    """Returns how something ended, by its name."""
    try:
        work()
    except PaitonError as error:
        return Check(name, error)
    return Check(name, None)


def run(args: argparse.Namespace) -> int:
    """Prints one line, or one entry of the JSON object, per check; raises the first error at the end."""
    manifest: list[bytes] = []
    bundle = open_bundle(args.bundle, manifest.append)
    trust, signature = _check_signature(args.bundle, policy_of(args), manifest[0])
    listed = verify_files(bundle, _progress(), strict=False)
    beside = check_companions(bundle, manifest[0], None if trust is None else trust.signed)
    files = [Check(check.path, check.error) for check in (*listed, *beside)]
    checks = Checks([Check(MANIFEST_NAME, None), *files], signature)
    if not checks.failed():  # code and plans that are not what was signed off are not run
        _run_targets(bundle, args, checks)
    failed = checks.failed()
    notes = _notes(bundle, trust)
    if args.json:
        lists = {"files": checks.files, "goldens": checks.goldens, "captures": checks.captures}
        found = {name: [check.as_json() for check in those] for name, those in lists.items()}
        print(json.dumps({"bundle": str(args.bundle), "ok": not failed, **found, **notes}, indent=2))
    else:
        for check in checks.all():
            print(f"{'FAILED' if check.error else 'ok':<7} {check.name}")
        for path in notes["unlisted"]:
            print(f"{'unused':<7} {path}")
        if notes["signature"] == "unchecked":
            print(f"{'note':<7} {SIGNATURE_NAME} was not checked: name the signer's key with --trusted-key")
    if failed:
        raise failed[0]
    return 0


def _check_signature(path: Path, policy: Policy, manifest: bytes) -> tuple[Trust | None, Check | None]:
    """Returns why the policy accepts the bundle, and the outcome as a line of the report, where it looked at all."""
    signature = read_signature(path)
    try:
        trust = policy.check(manifest, pinned=False, signature=signature, from_url=False, what=str(path))
    except PaitonError as error:
        return None, Check(SIGNATURE_NAME, error)
    if trust.key is None:
        return trust, None
    return trust, Check(f"{SIGNATURE_NAME} by {trust.key.fingerprint[:16]} ({trust.key.origin})", None)


def _notes(bundle: Bundle, trust: Trust | None) -> dict[str, Any]:
    """Returns what is worth knowing without being right or wrong."""
    if trust is None:
        signature = "failed"
    elif trust.key is not None:
        signature = "verified"
    else:
        signature = "unchecked" if (bundle.path / SIGNATURE_NAME).exists() else "absent"
    return {
        "signature": signature,
        "key": None if trust is None or trust.key is None else trust.key.fingerprint,
        "unlisted": unlisted_files(bundle),
    }


def longest_golden(bundle: Bundle) -> int:
    """Returns the tokens of KV cache that every golden fits in."""
    return max((len(golden.prompt) + len(golden.steps) for golden in bundle.manifest.goldens), default=1)


def _run_targets(bundle: Bundle, args: argparse.Namespace, checks: Checks) -> None:
    """Runs the target that was asked for, or all that this machine has."""
    if args.target is not None:
        bundle.memory(args.target)  # says which targets there are
    choice = None
    if args.device is not None or any(memory.target != CPU for memory in bundle.manifest.memory):
        from paiton_runtime.targets import choose_devices  # noqa: PLC0415  (the cpu does without)

        choice = choose_devices(bundle, args.target, args.device)
    if choice is None and args.check_capture:
        what = "the target is cpu" if args.target == CPU else "none is here that the bundle was built for"
        raise UsageError(f"--check-capture needs a GPU, but {what}", hint="name it with --target to learn more")
    if choice is None or args.target is None:
        checks.goldens.extend(_check_levels(bundle, args.threads))
    if choice is not None:
        from paiton_runtime.commands.verify_device import check_devices  # noqa: PLC0415

        check_devices(bundle, choice, checks, capture=args.check_capture)


def _check_levels(bundle: Bundle, threads: int | None) -> list[Check]:
    held = bundle.code_objects(CPU)
    levels = [level for level in runnable_levels(cpu_flags()) if level in held]
    if not levels:
        raise UnsupportedHostError(f"this machine runs none of the bundle's cpu levels: {', '.join(sorted(held))}")
    return [check for level in levels for check in _check_level(bundle, level, threads)]


def _check_level(bundle: Bundle, level: str, threads: int | None) -> list[Check]:
    options = BootOptions(
        level=level, threads=threads, kv_tokens=longest_golden(bundle), golden_check=False, target=CPU
    )
    with boot_bundle(bundle, options, Ledger()) as model:
        return check_all_goldens(model, f"{CPU} {level}")


def check_all_goldens(model: Model, where: str) -> list[Check]:
    """Reproduces every golden of a model's bundle; `where` says on what."""
    checks = []
    for index, golden in enumerate(model.manifest.goldens):
        name = f"golden {index} on {where}"
        checks.append(attempt(name, functools.partial(check_golden, model, golden, name)))
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
