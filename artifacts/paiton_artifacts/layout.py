"""Constants of the bundle's byte layout, and the arithmetic on them (artifacts/FORMAT.md)."""

from __future__ import annotations

from enum import IntEnum

FORMAT_MAJOR = 1
"""Version of the bundle format; a reader refuses another major version."""

FORMAT_MINOR = 1
"""Minor version: later ones only add fields that an older reader may ignore."""

RUNTIME_ABI = 3
"""Version of what code objects and plans expect of their executor (calling convention, regions, flags, io fields)."""

EXTENT_ALIGNMENT = 2 << 20
"""Blobs are padded to this many bytes, so that O_DIRECT, huge pages and DMA are happy."""

TENSOR_ALIGNMENT = 256
"""Every tensor starts at a multiple of this many bytes within its blob."""

ROW_ALIGNMENT = 16
"""Every row of a matrix starts at a multiple of this many bytes."""

CHUNK_BYTES = 64 << 20
"""Blobs are digested in chunks of at most this many bytes, cut at tensor boundaries where possible."""

CODE_ALIGNMENT = 256
"""Every image in the archive of a GPU code object starts at a multiple of this many bytes."""

MANIFEST_NAME = "manifest.msgpack"

SBOM_NAME = "sbom.cdx.json"
"""CycloneDX software bill of materials. Beside the manifest, which does not list it, as the two below."""

PROVENANCE_NAME = "provenance.json"
"""In-toto statement with SLSA provenance, whose subject is the manifest."""

SIGNATURE_NAME = "model.sig"
"""Detached OpenSSF Model Signing signature of every other file."""

COMPANIONS = (SBOM_NAME, PROVENANCE_NAME, SIGNATURE_NAME)
"""Files that may lie beside a manifest without being listed in it; a bundle boots without any of them."""

DTYPE_BYTES = {"f32": 4, "bf16": 2, "fp8_e4m3fn": 1, "int8": 1}
"""Storage dtypes of tensors in a blob, and their width in bytes."""


class Region(IntEnum):
    """The parts of a rank's arena that relocations refer to."""

    WEIGHTS = 0
    IO = 1
    SCRATCH = 2
    KV = 3
    COMM = 4


def align_up(value: int, alignment: int) -> int:
    """Returns the smallest multiple of `alignment` that is not below `value`."""
    return -(-value // alignment) * alignment
