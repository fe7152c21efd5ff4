"""A bundle as an OCI manifest: an artifact as the CNCF ModelPack specification describes it.

Every object that a store would hold is a layer of its own, with the same digest, and its file path is its key in a
store (`keys`): whoever extracts the artifact with another tool has a store in a folder. How chunks make up files is
the business of the bundle's manifest alone, which is the layer below `manifests/`.

https://github.com/modelpack/model-spec/blob/main/docs/spec.md, https://github.com/opencontainers/image-spec.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from paiton_artifacts.errors import ManifestError, UnsupportedError
from paiton_artifacts.layout import COMPANIONS
from paiton_artifacts.limits import MAX_BYTES, MAX_COMPANION_BYTES, MAX_JSON_VALUES
from paiton_artifacts.rules import apply, choice, integer, pattern, sequence, text
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.items import Item, items_of
from paiton_artifacts.store.keys import MANIFESTS, blob_key, companion_key, manifest_key
from paiton_artifacts.trust.bounded_json import anything, member, parse_json

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.cncf.model.manifest.v1+json"
CONFIG_TYPE = "application/vnd.cncf.model.config.v1+json"
WEIGHTS_TYPE = "application/vnd.cncf.model.weight.v1.raw"
SETTINGS_TYPE = "application/vnd.cncf.model.weight.config.v1.raw"
CODE_TYPE = "application/vnd.cncf.model.code.v1.raw"
DOCUMENT_TYPE = "application/vnd.cncf.model.doc.v1.raw"
FILE_PATH = "org.cncf.model.filepath"

MAX_MANIFEST_BYTES = MAX_COMPANION_BYTES
"""Registries take at most 4 MiB: about 12,000 layers, or 750 GB in chunks of 64 MiB."""

_PRECISION = {"f32": "float32", "bf16": "bfloat16", "fp8_e4m3fn": "float8_e4m3", "int8": "int8"}
_OCI_DIGEST = pattern("sha256:[0-9a-f]{64}", 71, "a SHA-256 digest")


class Layer(NamedTuple):
    """A blob of a registry: SHA-256 in lower-case hex, and bytes."""

    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """What an OCI manifest says about a bundle.

    Attributes:
        bundle: digest of the bundle's manifest.
        companions: the files beside it, by name.
    """

    bundle: str
    companions: Mapping[str, Layer]


def write_artifact(manifest: Manifest, data: bytes, companions: Mapping[str, Layer]) -> tuple[bytes, bytes]:
    """Returns the OCI manifest of a bundle and the configuration that it refers to; the same for the same bundle.

    Args:
        manifest: of the bundle.
        data: the bytes of its file.
        companions: what lies beside it.

    Raises:
        UnsupportedError: it has more chunks than fit.
    """
    digest = hashlib.sha256(data).hexdigest()
    layers = [_layer(SETTINGS_TYPE, digest, len(data), manifest_key(digest))]
    there = [name for name in COMPANIONS if name in companions]
    layers += [_layer(DOCUMENT_TYPE, *companions[name], companion_key(digest, name)) for name in there]
    layers += [_layer(kind, item.digest, item.size, blob_key(item.digest)) for kind, item in _typed(manifest)]
    # No time of creation: the same bundle gives the same artifact.
    config = _json(
        {
            "descriptor": {"name": manifest.model.name},
            "config": {
                "architecture": "transformer",
                "format": "paiton",
                "precision": ",".join(sorted({_PRECISION[tensor.dtype] for tensor in manifest.tensors})),
            },
            "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
        }
    )
    oci = _json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "config": {
                "mediaType": CONFIG_TYPE,
                "digest": f"sha256:{hashlib.sha256(config).hexdigest()}",
                "size": len(config),
            },
            "layers": layers,
        }
    )
    if len(oci) > MAX_MANIFEST_BYTES or sum(map(oci.count, (b",", b"[", b"{"))) >= MAX_JSON_VALUES:
        raise UnsupportedError(
            f"the bundle has {len(layers)} chunks and files, too many for one OCI manifest",
            hint="push it to an object store (s3, gs, az)",
        )
    return oci, config


def read_artifact(data: bytes, what: str) -> Artifact:
    """Returns what an OCI manifest says about a bundle.

    Args:
        data: the manifest.
        what: names it in messages.

    Raises:
        ManifestError: it is malformed, or that of something else.
    """
    value = parse_json(data, ManifestError, what)
    apply(lambda found: member(found, "artifactType", choice(ARTIFACT_TYPE)), value, ManifestError, what)
    layers = apply(
        lambda found: member(found, "layers", sequence(_described_layer, MAX_JSON_VALUES)), value, ManifestError, what
    )
    bundles: list[str] = []
    companions: dict[str, Layer] = {}
    for path, layer in layers:
        name = path.removeprefix(f"{MANIFESTS}/")
        if path == manifest_key(layer.digest):
            bundles.append(layer.digest)
        elif name != path and name.partition(".")[2] in COMPANIONS:
            companions[name.partition(".")[2]] = layer
    if len(bundles) != 1:
        raise ManifestError(
            f"{what}: a model without a bundle of ours in it", hint="push a bundle there with paiton-build push"
        )
    return Artifact(bundles[0], companions)


def _described_layer(value: object) -> tuple[str, Layer]:
    digest = member(value, "digest", _OCI_DIGEST).partition(":")[2]
    layer = Layer(digest, member(value, "size", integer(0, MAX_BYTES)))
    notes = member(value, "annotations", anything) if isinstance(value, dict) and "annotations" in value else {}
    return member(notes, FILE_PATH, text(1024)) if isinstance(notes, dict) and FILE_PATH in notes else "", layer


def _typed(manifest: Manifest) -> Iterator[tuple[str, Item]]:
    """Yields every object of at least one byte, with its media type; some registries refuse empty blobs."""
    weights = {blob.path for blob in manifest.blobs}
    code = {file.path for found in manifest.code_objects for file in (found.file, found.kernels) if file is not None}
    code |= {plan.file.path for plan in manifest.plans}
    for item in items_of(manifest):
        paths = {place.path for place in item.places}
        if item.size:
            yield WEIGHTS_TYPE if paths & weights else CODE_TYPE if paths & code else SETTINGS_TYPE, item


def _layer(kind: str, digest: str, size: int, path: str) -> dict[str, object]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size, "annotations": {FILE_PATH: path}}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
