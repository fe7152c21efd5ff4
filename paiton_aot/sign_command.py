"""`paiton-build sign`: writes the signature of a bundle beside its manifest."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from paiton_aot.progress import Progress
from paiton_artifacts.command_line import CommandParser
from paiton_artifacts.layout import MANIFEST_NAME, SIGNATURE_NAME
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.trust.keys import PASSWORD_VARIABLE, load_signing_key
from paiton_artifacts.trust.sign import sign_bundle

_EPILOG = f"""a key on the curve P-256, P-384 or P-521:
  openssl ecparam -name prime256v1 -genkey -noout -out key.pem
  openssl ec -in key.pem -pubout -out public.pem

{PASSWORD_VARIABLE} holds the password of an encrypted key. Verify with
  paiton-run verify BUNDLE --trusted-key public.pem
or with the PyPI package model-signing:
  model_signing verify key BUNDLE --signature BUNDLE/{SIGNATURE_NAME} --public_key public.pem"""


def sign_command(argv: Sequence[str]) -> int:
    """Runs the command with the arguments that follow its name."""
    args = _parser().parse_args(argv)
    key = load_signing_key(args.key)
    weights = sum(blob.size for blob in open_bundle(args.bundle).manifest.blobs)
    with Progress(not args.quiet).bar("sign", weights, "B") as advance:
        signed = sign_bundle(args.bundle, key, advance)
    if args.json:
        result = {
            "bundle": str(args.bundle),
            "signature": str(args.bundle / SIGNATURE_NAME),
            "manifest_sha256": signed.digests[MANIFEST_NAME],
            "key": key.fingerprint,
            "files": len(signed.digests),
        }
        print(json.dumps(result, indent=2))  # noqa: T201
    if not args.quiet:
        sys.stderr.write(f"{args.bundle}: {len(signed.digests)} files signed with the key {key.fingerprint[:16]}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="paiton-build sign",
        usage="paiton-build sign BUNDLE --key FILE [options]",
        description="Signs every file of a bundle, in the format of OpenSSF Model Signing.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="directory that paiton-build made")
    parser.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key (PEM)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on stdout")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no summary")
    return parser
