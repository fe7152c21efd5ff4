"""`paiton-build push`, `ls`, `diff` and `gc`: bundles in object storage."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from paiton_artifacts.command_line import CommandParser
from paiton_artifacts.errors import UsageError
from paiton_artifacts.layout import MANIFEST_NAME
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.address import is_registry, is_url, parse_address, parse_root
from paiton_artifacts.store.collect import collect_garbage
from paiton_artifacts.store.items import bundle_bytes
from paiton_artifacts.store.listing import Listed, compare, list_bundles
from paiton_artifacts.store.opening import open_object_store, open_store
from paiton_artifacts.store.push import Push
from paiton_artifacts.store.remote import decode_manifest, find_digest, read_manifest
from paiton_runtime.commands.progress_line import progress_line

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGE = re.compile(r"(\d{1,9})([smhd])")
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


def run_command(word: str, argv: Sequence[str]) -> int:
    """Runs one of the commands with the arguments that follow its name."""
    adders: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]] = {
        "push": (_add_push, _push),
        "ls": (_add_ls, _ls),
        "diff": (_add_diff, _diff),
        "gc": (_add_gc, _gc),
    }
    add, body = adders[word]
    parser = CommandParser(prog=f"paiton-build {word}", description=_PURPOSE[word], allow_abbrev=False)
    add(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return body(parser.parse_args(argv))


_PURPOSE = {
    "push": "Uploads a bundle: what the store has already is not moved again. Interrupted, it resumes when run again.",
    "ls": "Lists the bundles of a store.",
    "diff": "Says what differs between two bundles, and how many bytes they share.",
    "gc": "Deletes what no bundle of a store needs: the blobs of deleted manifests, what dead pushes left behind.",
}


def _add_push(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory that paiton-build made")
    parser.add_argument(
        "url",
        metavar="URL[:TAG]",
        help="such as s3://bucket/prefix/name:tag or oci://host/repository:tag (default tag: latest)",
    )
    parser.add_argument(
        "--expect",
        metavar="DIGEST",
        help="fail unless the tag holds this digest now; 'none': unless it does not exist",
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, no summary")


def _push(args: argparse.Namespace) -> int:
    address = parse_address(args.url)
    progress = progress_line("pushing", quiet=args.quiet)

    def remark(text: str) -> None:
        print(f"paiton-build: {text}", file=sys.stderr, flush=True)  # noqa: T201

    done = Push(args.bundle, address, expected=_expected(args.expect), progress=progress, remark=remark).run()
    result = {
        "url": str(done.address),
        "tag": address.tag,
        "digest": f"sha256:{done.digest}",
        "replaced": f"sha256:{done.replaced}" if done.replaced else None,
        "bytes": done.bytes,
        "uploaded_bytes": done.uploaded_bytes,
        "objects": done.objects,
        "uploaded_objects": done.uploaded,
        "oci_manifest": f"sha256:{done.artifact}" if done.artifact else None,
    }
    if not args.quiet:
        moved = f"{done.uploaded_bytes / 1e6:,.1f} of {done.bytes / 1e6:,.1f} MB uploaded"
        print(f"{args.bundle}: {moved} in {done.uploaded} of {done.objects} objects", file=sys.stderr)  # noqa: T201
    _show(args, result, str(done.address))
    return 0


def _add_ls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of a store, or of a name in it: s3://bucket/prefix[/name]")
    parser.add_argument("--untagged", action="store_true", help="also manifests that no tag holds")


def _ls(args: argparse.Namespace) -> int:
    root = parse_root(args.url)
    rows = list_bundles(open_store(root), untagged=args.untagged)
    parent, _, name = root.rpartition("/")
    if not rows and not parent.endswith("/") and not is_registry(root):
        rows = list_bundles(open_store(parent), name)
    lines = [_row(row) for row in rows]
    _show(args, {"url": args.url, "bundles": [row.as_json() for row in rows]}, "\n".join(lines) or "no bundles")
    return 0


def _row(row: Listed) -> str:
    name = f"{row.name}:{row.tag}" if row.name else "-"
    size = f"{bundle_bytes(row.manifest) / 1e6:>12,.1f} MB" if row.manifest else f"DAMAGED: {row.problem}"
    when = f"{row.modified:%Y-%m-%d %H:%M}" if row.modified else ""
    return f"{name:<32}  sha256:{row.digest}  {when}  {size}"


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="BUNDLE", help="directory or URL")
    parser.add_argument("second", metavar="BUNDLE", help="directory or URL")


def _diff(args: argparse.Namespace) -> int:
    (one, first), (two, second) = _look(args.first), _look(args.second)
    found = compare(first, second)
    lines = [f"- sha256:{one}  {args.first}", f"+ sha256:{two}  {args.second}"]
    lines += [f"  {name}: {before!r} -> {after!r}" for name, (before, after) in found.facts.items()]
    for sign, files in (("-", found.removed), ("+", found.added), ("~", found.changed)):
        lines += [f"{sign} {path}  {size:,} bytes" for path, size in files.items()]
    lines.append(f"  {found.shared_bytes:,} bytes in common, {found.new_bytes:,} only in the second")
    names = {"first": f"sha256:{one}", "second": f"sha256:{two}", "same": one == two}
    _show(args, names | found.as_json(), "\n".join(lines))
    return 0


def _look(text: str) -> tuple[str, Manifest]:
    """Returns digest and manifest of a bundle on disk or in a store."""
    if not is_url(text):
        manifest = open_bundle(Path(text)).manifest
        return hashlib.sha256((Path(text) / MANIFEST_NAME).read_bytes()).hexdigest(), manifest
    address = parse_address(text)
    store = open_store(address.root)
    digest = find_digest(store, address)
    return digest, decode_manifest(read_manifest(store, digest, text), text)


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="of a store: s3://bucket/prefix")
    parser.add_argument(
        "--older-than",
        default="24h",
        metavar="AGE",
        help="leave younger objects alone; longer than any push takes (default: 24h; units s, m, h, d)",
    )
    parser.add_argument(
        "--untagged", action="store_true", help="also delete manifests that no tag holds, though digests may be pinned"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")


def _gc(args: argparse.Namespace) -> int:
    found = _AGE.fullmatch(args.older_than)
    if found is None:
        raise UsageError(f"--older-than {args.older_than!r} is no age", hint="write 90m, 24h or 7d")
    age = timedelta(seconds=int(found[1]) * _UNITS[found[2]])
    root = parse_root(args.url)
    store = open_object_store(root, "a registry collects its own garbage, what no tag holds")
    garbage = collect_garbage(store, age, untagged=args.untagged, dry_run=args.dry_run)
    verb = "would delete" if args.dry_run else "deleted"
    lines = [f"{verb} {info.key}  {info.size:,} bytes" for info in garbage.objects]
    lines.append(f"{verb} {len(garbage.objects)} objects, {garbage.bytes:,} bytes; kept {garbage.kept} blobs")
    result = {
        "url": root,
        "dry_run": args.dry_run,
        "deleted": [info.key for info in garbage.objects],
        "deleted_bytes": garbage.bytes,
        "kept_blobs": garbage.kept,
    }
    _show(args, result, "\n".join(lines))
    return 0


def _expected(text: str | None) -> str | None:
    """Returns what the tag must hold: a digest in hex, "" for nothing, None for anything."""
    if text is None or text == "none":
        return None if text is None else ""
    found = _DIGEST.fullmatch(text)
    if found is None:
        raise UsageError(f"--expect {text!r} is no digest", hint="write sha256:HEX, or none")
    return found[1]


def _show(args: argparse.Namespace, result: Mapping[str, object], text: str) -> None:
    print(json.dumps(result, indent=2) if args.json else text)  # noqa: T201
