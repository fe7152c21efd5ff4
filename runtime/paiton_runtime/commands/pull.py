"""`paiton-run pull`: fetches a bundle from a store, into the cache or into a directory."""

from __future__ import annotations

import argparse
import json

from paiton_artifacts.store.address import parse_address
from paiton_artifacts.store.resolve import Resolver
from paiton_runtime.commands.progress_line import progress_line
from paiton_runtime.commands.store_arguments import user_cache
from paiton_runtime.commands.trust_arguments import policy_of


def run(args: argparse.Namespace) -> int:
    """Prints where the bundle is."""
    address = parse_address(args.url)
    resolver = Resolver(policy_of(args), user_cache(), progress_line("pulling", quiet=args.quiet))
    path = resolver.cached(address) if args.output is None else resolver.download(address, args.output)
    if args.json:
        print(json.dumps({"url": str(address), "digest": f"sha256:{resolver.digest}", "path": str(path)}, indent=2))
    else:
        print(path)
    return 0
