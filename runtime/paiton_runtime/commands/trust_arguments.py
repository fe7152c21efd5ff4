"""The flags that say which bundles may be used, and the policy that they make."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paiton_artifacts.trust.policy import Policy


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Adds the flags to a command that uses a bundle."""
    group = parser.add_argument_group("trust")
    group.add_argument(
        "--trusted-key",
        action="append",
        type=Path,
        metavar="FILE",
        help="public key (PEM) whose signature counts; repeatable (default: the files in $PAITON_TRUSTED_KEYS)",
    )
    group.add_argument(
        "--require-signature",
        action="store_true",
        help="use nothing but what a trusted key signed, from wherever it is",
    )
    group.add_argument(
        "--allow-untrusted",
        action="store_true",
        help="use a bundle from a URL although no trusted key signed it and no digest pins it",
    )


def policy_of(args: argparse.Namespace) -> Policy:
    """Returns the policy that the flags ask for.

    Raises:
        UsageError: a key cannot be read, or the flags contradict each other.
    """
    from paiton_artifacts.trust.keys import load_trusted_keys, trusted_key_paths  # noqa: PLC0415  (not to parse)
    from paiton_artifacts.trust.policy import Policy  # noqa: PLC0415

    paths = trusted_key_paths() if args.trusted_key is None else args.trusted_key
    return Policy(load_trusted_keys(paths), args.require_signature, args.allow_untrusted)
