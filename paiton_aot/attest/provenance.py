"""The provenance of a bundle: an in-toto statement with SLSA's predicate, about the manifest.

Formats: in-toto Attestation Framework, Statement v1 (github.com/in-toto/attestation), and SLSA Provenance v1
(slsa.dev/spec/v1.0/provenance). Reproducible: no times unless `SOURCE_DATE_EPOCH` gives one, no paths, no host.
The bundle's signature covers it.
"""

from __future__ import annotations

import datetime
import json
import os

import paiton_aot
from paiton_aot.identity.build_key import BuildKey
from paiton_artifacts.errors import UsageError, VerificationError
from paiton_artifacts.layout import MANIFEST_NAME
from paiton_artifacts.trust.bounded_json import parse_json
from paiton_artifacts.trust.statement import STATEMENT_TYPE

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:paiton-aot:build:v1"
LOCAL_BUILDER = "urn:paiton-aot:builder:unnamed"

BUILDER_VARIABLE = "PAITON_BUILDER_ID"
"""Environment variable with the URI of who builds, such as that of a CI workflow."""


def provenance(key: BuildKey, manifest_sha256: str, *, origin: str = "", commit: str = "") -> bytes:
    """Returns the provenance statement of a bundle as JSON.

    Args:
        key: of the build.
        manifest_sha256: SHA-256 of the manifest's file, in lower-case hex.
        origin: URL that the checkpoint came from; empty for a path, which says nothing elsewhere.
        commit: that its files are of, where it came from the Hugging Face hub.

    Raises:
        UsageError: `SOURCE_DATE_EPOCH` is no number of seconds.
    """
    dependencies: list[dict[str, object]] = []
    if origin:
        pinned: dict[str, object] = {"digest": {"gitCommit": commit}} if commit else {}
        dependencies.append({"name": "checkpoint", "uri": origin, **pinned})
    dependencies += [
        {"name": f"checkpoint/{name}", "digest": {"sha256": digest}} for name, digest in key.checkpoint().items()
    ]
    dependencies += [
        {"name": name, "digest": {"sha256": digest}}
        for name, digest in key.components.items()
        if name.startswith(("sources/", "tuning table/"))
    ]
    dependencies += [{"uri": package_url(name, version)} for name, version in key.tools().items()]
    options = {name: json.loads(value) for name, value in key.options().items()}
    builder = os.environ.get(BUILDER_VARIABLE) or LOCAL_BUILDER
    run: dict[str, object] = {"builder": {"id": builder, "version": {"paiton-aot": paiton_aot.__version__}}}
    if time := source_date():
        run["metadata"] = {"finishedOn": time}
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": MANIFEST_NAME, "digest": {"sha256": manifest_sha256}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"options": options},
                "internalParameters": {"key": key.value, "components": dict(key.components)},
                "resolvedDependencies": dependencies,
            },
            "runDetails": run,
        },
    }
    return json.dumps(statement, indent=1, sort_keys=True).encode() + b"\n"


def components_in(data: bytes, what: str) -> BuildKey | None:
    """Returns the key that a provenance statement of ours records; None where it records none.

    Args:
        data: the statement; nothing vouches for it.
        what: names it in messages.

    Raises:
        VerificationError: it is no JSON, or exceeds a limit.
    """
    value = parse_json(data, VerificationError, what)
    for name in ("predicate", "buildDefinition", "internalParameters", "components"):
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        return None
    return BuildKey(value)


def package_url(name: str, version: str) -> str:
    """Returns the purl of a package (github.com/package-url/purl-spec)."""
    if name == "zstd":
        return f"pkg:github/facebook/zstd@v{version}"
    return f"pkg:pypi/{name.replace('_', '-').lower()}@{version}"


def source_date() -> str | None:
    """Returns `SOURCE_DATE_EPOCH` (reproducible-builds.org) as RFC 3339; None where it is not set.

    Raises:
        UsageError: it is no number of seconds.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        return datetime.datetime.fromtimestamp(int(text), datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}", hint="seconds since 1970, such as 1760000000") from None
