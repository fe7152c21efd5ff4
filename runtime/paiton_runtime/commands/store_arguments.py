"""What commands know of stores: BUNDLE as a path or a URL, and the arguments of `pull` and `cache`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paiton_artifacts.reader import Bundle
    from paiton_artifacts.store.cache import Cache

BUNDLE_HELP = "directory that paiton-build made, or its URL in a store, such as s3://bucket/name:tag"


def bundle_argument(text: str) -> Path | str:
    """Returns a BUNDLE: a path, or a URL as it is (a path would lose one of its slashes)."""
    return text if "://" in text else Path(text)


def add_pull(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `pull`, those of trust aside."""
    parser.add_argument("url", metavar="URL", help="s3://BUCKET/PREFIX/NAME:TAG, or ...NAME@sha256:HEX")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="directory to create (default: fill the cache, print its path)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress on a terminal")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `cache`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("ls", help="list bundles, least recently used first", allow_abbrev=False)
    prune = actions.add_parser("prune", help="remove what is least recently used", allow_abbrev=False)
    prune.add_argument(
        "--to", metavar="SIZE", help="bytes that may stay, such as 50G; 0 removes all (default: $PAITON_CACHE_LIMIT)"
    )
    verify = actions.add_parser("verify", help="hash every byte; set aside what is damaged", allow_abbrev=False)
    verify.add_argument("digest", nargs="*", metavar="DIGEST", help="the first digits are enough (default: all)")
    for action in (listing, prune, verify):
        action.add_argument("--json", action="store_true", help="print one JSON object")


def user_cache() -> Cache:
    """Returns the user's cache; what it has to say goes to stderr."""
    from paiton_artifacts.store.cache import Cache  # noqa: PLC0415  (bundles from paths do without)
    from paiton_runtime.commands.progress_line import remark  # noqa: PLC0415

    return Cache.from_environment(remark)


def open_argument(args: argparse.Namespace) -> Bundle:
    """Opens `args.bundle` for a boot. What is not in the cache yet arrives there while it boots.

    Raises:
        PaitonError: as `Resolver.arrive` and `open_bundle`.
    """
    from paiton_artifacts.reader import open_bundle  # noqa: PLC0415  (this module is imported to parse arguments)
    from paiton_runtime.commands.trust_arguments import policy_of  # noqa: PLC0415

    if isinstance(args.bundle, Path):
        return open_bundle(args.bundle, policy_of(args).for_directory(args.bundle))
    from paiton_artifacts.store.address import parse_address  # noqa: PLC0415
    from paiton_artifacts.store.resolve import Resolver  # noqa: PLC0415
    from paiton_runtime.arriving import ArrivingBundle  # noqa: PLC0415

    found = Resolver(policy_of(args), user_cache()).arrive(parse_address(args.bundle))
    if isinstance(found, Path):
        return open_bundle(found)
    return ArrivingBundle(found.path, found.manifest, found)


def resolve_argument(args: argparse.Namespace) -> None:
    """Puts a directory in the place of a URL in `args.bundle`: the bundle's in the cache, fetched if need be.

    Raises:
        PaitonError: as `Resolver.cached`.
    """
    if isinstance(args.bundle, Path):
        return
    from paiton_artifacts.store.resolve import resolve_bundle  # noqa: PLC0415
    from paiton_runtime.commands.progress_line import progress_line  # noqa: PLC0415
    from paiton_runtime.commands.trust_arguments import policy_of  # noqa: PLC0415

    args.bundle = resolve_bundle(args.bundle, lambda: policy_of(args), user_cache(), progress_line("pulling"))
