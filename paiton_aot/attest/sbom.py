"""The bill of materials of a bundle, in CycloneDX 1.6 (cyclonedx.org/docs/1.6/json).

Reproducible: the serial number is derived from the manifest's digest, and there is a time only where
`SOURCE_DATE_EPOCH` gives one.
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import paiton_aot
from paiton_aot.attest.provenance import package_url, source_date
from paiton_aot.identity.build_key import BuildKey
from paiton_artifacts.consistency import files_of
from paiton_artifacts.schema import Manifest

_SCHEMA = "http://cyclonedx.org/schema/bom-1.6.schema.json"


def sbom(key: BuildKey, manifest: Manifest, manifest_sha256: str) -> bytes:
    """Returns the bill of materials as JSON.

    Args:
        key: of the build: says which checkpoint and which tools.
        manifest: says which files.
        manifest_sha256: SHA-256 of its file, in lower-case hex.

    Raises:
        UsageError: `SOURCE_DATE_EPOCH` is no number of seconds.
    """
    metadata: dict[str, Any] = {
        "component": {
            "type": "machine-learning-model",
            "bom-ref": "bundle",
            "name": manifest.model.name,
            "version": manifest_sha256,
            "hashes": _sha256(manifest_sha256),
            "properties": [
                {"name": "paiton-aot:build-key", "value": key.value},
                {"name": "paiton-aot:tensor-parallel-ranks", "value": str(manifest.tp)},
            ],
        },
        "tools": {"components": [_tool("paiton-aot", paiton_aot.__version__), *_tools(key)]},
    }
    if time := source_date():
        metadata["timestamp"] = time
    components = [_checkpoint(key, manifest), *_files(manifest)]
    document = {
        "$schema": _SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, manifest_sha256)}",
        "version": 1,
        "metadata": metadata,
        "components": components,
        "dependencies": [
            {"ref": "bundle", "dependsOn": [component["bom-ref"] for component in components]},
            *({"ref": f"file:{blob.path}", "dependsOn": ["checkpoint"]} for blob in manifest.blobs),
        ],
    }
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _checkpoint(key: BuildKey, manifest: Manifest) -> dict[str, Any]:
    files = [
        {"type": "file", "bom-ref": f"checkpoint:{name}", "name": name, "hashes": _sha256(digest)}
        for name, digest in key.checkpoint().items()
    ]
    return {
        "type": "machine-learning-model",
        "bom-ref": "checkpoint",
        "name": manifest.model.name,
        "components": files,
        "modelCard": {"modelParameters": {"modelArchitecture": manifest.model.architecture}},
    }


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    """Returns the files that the manifest lists; those of code say which compiler they came from."""
    compilers = {code.file.path: code.compiler for code in manifest.code_objects}
    # A blob has no digest as a whole: its chunks have.
    found: list[dict[str, Any]] = [
        {"type": "data", "bom-ref": f"file:{blob.path}", "name": blob.path} for blob in manifest.blobs
    ]
    for entry in files_of(manifest):
        component = {
            "type": "file",
            "bom-ref": f"file:{entry.path}",
            "name": entry.path,
            "hashes": _sha256(entry.sha256),
        }
        if entry.path in compilers:
            component["properties"] = [{"name": "paiton-aot:compiler", "value": compilers[entry.path]}]
        found.append(component)
    return found


def _tools(key: BuildKey) -> list[dict[str, Any]]:
    return [_tool(name, version) for name, version in key.tools().items()]


def _tool(name: str, version: str) -> dict[str, Any]:
    return {"type": "application", "name": name, "version": version, "purl": package_url(name, version)}


def _sha256(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]
