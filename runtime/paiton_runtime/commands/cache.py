"""`paiton-run cache`: the bundles on this machine."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from paiton_artifacts.errors import PaitonError, UsageError
from paiton_artifacts.store.cache import LIMIT_VARIABLE, Cache, Entry, parse_size
from paiton_runtime.commands.progress_line import progress_line
from paiton_runtime.commands.store_arguments import user_cache


def run(args: argparse.Namespace) -> int:
    """Lists, prunes or verifies."""
    actions: dict[str, Callable[[Cache, argparse.Namespace], int]] = {"ls": _ls, "prune": _prune, "verify": _verify}
    return actions[args.action](user_cache(), args)


def _ls(cache: Cache, args: argparse.Namespace) -> int:
    entries = cache.entries()
    if args.json:
        found = [_as_json(entry) for entry in entries]
        print(json.dumps({"path": str(cache.root), "bytes": cache.size(), "bundles": found}, indent=2))
        return 0
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        state = "" if entry.complete else "  incomplete"
        print(f"{entry.digest[:16]}  {entry.size / 1e6:>12,.1f} MB  {used}  {entry.name}{state}")
    limit = "" if cache.limit is None else f" of {cache.limit / 1e6:,.1f}"
    print(f"{cache.root}: {len(entries)} bundle(s), {cache.size() / 1e6:,.1f}{limit} MB")
    return 0


def _prune(cache: Cache, args: argparse.Namespace) -> int:
    target = cache.limit if args.to is None else parse_size(args.to)
    if target is None:
        raise UsageError("prune to which size?", hint=f"add --to SIZE, or set {LIMIT_VARIABLE}")
    removed = cache.prune(target)
    if args.json:
        found = [_as_json(entry) for entry in removed]
        print(json.dumps({"path": str(cache.root), "bytes": cache.size(), "removed": found}, indent=2))
        return 0
    for entry in removed:
        print(f"removed {entry.digest[:16]}  {entry.name}")
    print(f"{cache.root}: {cache.size() / 1e6:,.1f} MB left")
    return 0


def _verify(cache: Cache, args: argparse.Namespace) -> int:
    errors: list[PaitonError] = []
    report = []
    for entry in _chosen(cache, args.digest):
        try:
            checks = cache.verify(entry.digest, progress_line(f"verifying {entry.digest[:16]}"))
            found: list[PaitonError] = [check.error for check in checks if check.error]
        except PaitonError as error:
            found = [error]
        errors += found
        report.append({"digest": f"sha256:{entry.digest}", "ok": not found, "errors": [e.message for e in found]})
        if not args.json:
            print(f"{'FAILED' if found else 'ok':<7} {entry.digest[:16]}  {entry.name}")
    if args.json:
        print(json.dumps({"path": str(cache.root), "ok": not errors, "bundles": report}, indent=2))
    if errors:
        raise errors[0]
    return 0


def _chosen(cache: Cache, prefixes: list[str]) -> list[Entry]:
    """Returns the complete bundles whose digests begin as asked for."""
    complete = [entry for entry in cache.entries() if entry.complete]
    wanted = [prefix.removeprefix("sha256:") for prefix in prefixes]
    for prefix in wanted:
        if sum(entry.digest.startswith(prefix) for entry in complete) != 1:
            raise UsageError(f"{prefix!r} names no bundle, or several", hint="paiton-run cache ls lists them")
    return [entry for entry in complete if not wanted or any(map(entry.digest.startswith, wanted))]


def _as_json(entry: Entry) -> dict[str, object]:
    return {
        "digest": f"sha256:{entry.digest}",
        "path": str(entry.path),
        "model": entry.name,
        "complete": entry.complete,
        "bytes": entry.size,
        "used": entry.used,
    }
