"""The bundle format of paiton-aot: read, write and verify. `artifacts/FORMAT.md` describes the bytes.

Names are imported when first used, so that importing one module does not pay for the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from paiton_artifacts.errors import PaitonError as PaitonError
    from paiton_artifacts.plan import Access as Access
    from paiton_artifacts.plan import Launch as Launch
    from paiton_artifacts.plan import LaunchFlag as LaunchFlag
    from paiton_artifacts.plan import Plan as Plan
    from paiton_artifacts.plan import Relocation as Relocation
    from paiton_artifacts.plan import RelocationKind as RelocationKind
    from paiton_artifacts.plan import Segment as Segment
    from paiton_artifacts.plan import check_plan as check_plan
    from paiton_artifacts.plan import decode_plan as decode_plan
    from paiton_artifacts.plan import encode_plan as encode_plan
    from paiton_artifacts.reader import Bundle as Bundle
    from paiton_artifacts.reader import open_bundle as open_bundle
    from paiton_artifacts.schema import Manifest as Manifest
    from paiton_artifacts.verify import FileCheck as FileCheck
    from paiton_artifacts.verify import verify_files as verify_files
    from paiton_artifacts.writer import BundleWriter as BundleWriter

_HOMES = {
    "PaitonError": "errors",
    "Access": "plan",
    "Launch": "plan",
    "LaunchFlag": "plan",
    "Plan": "plan",
    "Relocation": "plan",
    "RelocationKind": "plan",
    "Segment": "plan",
    "check_plan": "plan",
    "decode_plan": "plan",
    "encode_plan": "plan",
    "Bundle": "reader",
    "open_bundle": "reader",
    "Manifest": "schema",
    "FileCheck": "verify",
    "verify_files": "verify",
    "BundleWriter": "writer",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the table is the one place to add a name


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"paiton_artifacts.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
