"""OCI manifests of bundles, without a registry: what is written, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest

from paiton_artifacts.errors import ManifestError, UnsupportedError
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.schema import Chunk
from paiton_artifacts.store.oci.artifact import read_artifact, write_artifact

LAYER = {
    "mediaType": "x",
    "digest": f"sha256:{'1' * 64}",
    "size": 1,
    "annotations": {"org.cncf.model.filepath": f"manifests/sha256/{'1' * 64}"},
}
KIND = "application/vnd.cncf.model.manifest.v1+json"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b'{"artifactType": 1}',
        json.dumps({"artifactType": "application/vnd.oci.image.config.v1+json", "layers": []}).encode(),
        json.dumps({"artifactType": KIND}).encode(),
        json.dumps({"artifactType": KIND, "layers": [LAYER, LAYER]}).encode(),
        json.dumps({"artifactType": KIND, "layers": [{**LAYER, "digest": f"sha256:{'2' * 64}"}]}).encode(),
        json.dumps({"artifactType": KIND, "layers": [{**LAYER, "digest": "sha512:00"}]}).encode(),
        json.dumps({"artifactType": KIND, "layers": [{**LAYER, "size": -1}]}).encode(),
        json.dumps({"artifactType": KIND, "layers": [{**LAYER, "annotations": {}}]}).encode(),
    ],
)
def test_other_manifests_are_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        read_artifact(data, "it")
    good = json.dumps({"artifactType": KIND, "layers": [LAYER]}).encode()
    assert read_artifact(good, "it").bundle == "1" * 64


def test_too_many_chunks_for_an_oci_manifest_are_refused(bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    chunks = tuple(Chunk(index, 1, f"{index:064x}") for index in range(20_000))
    many = dataclasses.replace(manifest, blobs=(dataclasses.replace(manifest.blobs[0], chunks=chunks),))
    with pytest.raises(UnsupportedError, match="too many"):
        write_artifact(many, b"", {})
    few = dataclasses.replace(manifest, blobs=(dataclasses.replace(manifest.blobs[0], chunks=chunks[:9000]),))
    oci, _ = write_artifact(few, b"its manifest", {})
    assert read_artifact(oci, "it").bundle == hashlib.sha256(b"its manifest").hexdigest()
