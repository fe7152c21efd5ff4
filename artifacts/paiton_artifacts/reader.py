"""Opens a bundle: parses and checks the manifest, and gives access to the files that it lists."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from paiton_artifacts import container
from paiton_artifacts.consistency import files_of
from paiton_artifacts.errors import (
    BundleNotFoundError,
    CodeObjectError,
    DigestMismatchError,
    FileSizeError,
    PlanError,
    UnsupportedTargetError,
)
from paiton_artifacts.files import check_size, open_inside, read_bounded
from paiton_artifacts.kernel_table import Kernel, check_launches, decode_kernel_table
from paiton_artifacts.layout import MANIFEST_NAME
from paiton_artifacts.plan import Plan, check_plan, decode_plan
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import CodeObject, FileEntry, Manifest, MemoryPlan, PlanFile
from paiton_artifacts.validate import parse_manifest

_HINT = "the bundle is damaged; build or fetch it again"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on disk whose manifest is valid and whose files exist in their declared sizes.

    The contents of blobs are not verified here (`verify.verify_files` does that); every other file is, when read.
    """

    path: Path
    manifest: Manifest

    def read_file(self, entry: FileEntry) -> bytes:
        """Returns the contents of a file other than a blob.

        Raises:
            FileSizeError: its size is not the declared one.
            DigestMismatchError: its SHA-256 is not the declared one.
        """
        data = read_bounded(self.path, entry.path, entry.size)
        if len(data) != entry.size:
            raise FileSizeError(
                f"{self.path / entry.path}: {len(data)} bytes, the manifest declares {entry.size}", hint=_HINT
            )
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise DigestMismatchError(
                f"{self.path / entry.path}: SHA-256 is {found}, the manifest declares {entry.sha256}", hint=_HINT
            )
        return data

    def blob_path(self, rank: int) -> Path:
        """Returns the path of a rank's blob."""
        return self.path / self.manifest.blobs[rank].path

    def open_blob(self, rank: int) -> AbstractContextManager[int]:
        """Opens a rank's blob for reading, following no link; gives a file descriptor."""
        return open_inside(self.path, self.manifest.blobs[rank].path)

    def memory(self, target: str, profile: str | None = None) -> MemoryPlan:
        """Returns the memory plan of a target, of its first profile where none is named.

        Raises:
            UnsupportedTargetError: the bundle was not built for it.
        """
        for memory in self.manifest.memory:
            if memory.target == target and profile in (None, memory.profile):
                return memory
        built = ", ".join(f"{memory.target} ({memory.profile})" for memory in self.manifest.memory) or "none"
        wanted = target if profile is None else f"{target} ({profile})"
        flags = f"--target {target}" + ("" if profile is None else f" --profile {profile}")
        raise UnsupportedTargetError(
            f"{self.path}: no target {wanted!r}, the bundle has: {built}",
            hint=f"build it with {flags}, or choose one that it has",
        )

    def code_objects(self, target: str) -> dict[str, CodeObject]:
        """Returns the code objects of a target by level."""
        return {code.level: code for code in self.manifest.code_objects if code.target == target}

    def kernels(self, target: str) -> dict[str, Kernel]:
        """Returns the kernels of a GPU target by symbol; none for the cpu, whose code objects have no kernel table.

        Raises:
            VerificationError: a kernel table is damaged, or does not list the code object's symbols.
        """
        kernels: dict[str, Kernel] = {}
        for code in self.code_objects(target).values():
            if code.kernels is None:
                continue
            what = str(self.path / code.kernels.path)
            table = decode_kernel_table(self.read_file(code.kernels), code.file.size, what)
            listed = tuple(kernel.symbol for kernel in table.kernels)
            if table.target != target or listed != code.symbols:
                raise CodeObjectError(f"{what}: is not the kernel table that the manifest declares", hint=_HINT)
            kernels |= {kernel.symbol: kernel for kernel in table.kernels}
        return kernels

    def load_plan(self, entry: PlanFile, kernels: Mapping[str, Kernel] | None = None) -> Plan:
        """Returns a plan, read, decoded and checked against the bundle.

        Args:
            entry: of the manifest.
            kernels: what `kernels` returned for its target, where several plans are loaded.

        Raises:
            VerificationError: it is damaged, malformed, out of bounds or not the plan that the manifest declares.
        """
        what = str(self.path / entry.file.path)
        plan = decode_plan(self.read_file(entry.file), what)
        declared = (entry.target, entry.profile, entry.family, entry.tokens, entry.requests)
        found = (plan.target, plan.profile, plan.family, plan.tokens, plan.requests)
        if found != declared:
            raise PlanError(f"{what}: holds the plan {found}, the manifest declares {declared}", hint=_HINT)
        extents = self.memory(entry.target, entry.profile).extents
        check_plan(plan, extents, self.manifest.tp, self._symbols(entry.target))
        if known := self.kernels(entry.target) if kernels is None else kernels:
            check_launches(plan, known)
        return plan

    def plan_files(self, target: str, profile: str | None = None) -> list[PlanFile]:
        """Returns the plans of a target, of its first profile where none is named, without reading them.

        Raises:
            UnsupportedTargetError: the bundle was not built for the target.
        """
        chosen = self.memory(target, profile).profile
        return [entry for entry in self.manifest.plans if (entry.target, entry.profile) == (target, chosen)]

    def plans(self, target: str, profile: str | None = None) -> Iterator[tuple[PlanFile, Plan]]:
        """Yields every plan of a target, of its first profile where none is named, each as `load_plan` returns it.

        Raises:
            UnsupportedTargetError: the bundle was not built for the target.
            VerificationError: as `load_plan`.
        """
        entries = self.plan_files(target, profile)
        kernels = self.kernels(target)
        for entry in entries:
            yield entry, self.load_plan(entry, kernels)

    def _symbols(self, target: str) -> frozenset[str]:
        """Returns the symbols that every level has: a plan must run on each of them."""
        lists = [code.symbols for code in self.code_objects(target).values()]
        return frozenset(lists[0]).intersection(*lists[1:]) if lists else frozenset()


def open_bundle(path: Path, accept: Callable[[bytes], object] | None = None) -> Bundle:
    """Opens a bundle.

    Checks the manifest completely, and that every file it lists is a regular file inside the bundle with the declared
    size. Files that it does not list are never touched.

    Args:
        path: the bundle's directory.
        accept: called with the bytes of the manifest's file before anything is parsed; raises to refuse the bundle. See
            `trust.policy`.

    Raises:
        BundleNotFoundError: there is no directory with a manifest.
        UnsupportedVersionError: it has another format version or runtime ABI.
        DigestMismatchError: the manifest is damaged.
        ManifestError: the manifest is malformed.
        BoundsError: the manifest has an extent outside of its region.
        FileSizeError: a file is missing, or shorter or longer than declared.
        VerificationError: a file is a link or not a regular file.
    """
    if not path.is_dir():
        raise BundleNotFoundError(f"no bundle at {path}", hint="a bundle is a directory written by paiton-build")
    if not os.path.lexists(path / MANIFEST_NAME):
        raise BundleNotFoundError(
            f"no {MANIFEST_NAME} in {path}",
            hint="a bundle is a directory written by paiton-build; its build may have failed",
        )
    what = str(path / MANIFEST_NAME)
    limit = container.HEADER.size + container.MANIFEST.max_compressed
    data = read_bounded(path, MANIFEST_NAME, limit)
    if accept is not None:
        accept(data)
    manifest = parse_manifest(container.unpack(container.MANIFEST, data, what), what)
    for entry in files_of(manifest):
        check_size(path, entry.path, entry.size)
    for blob in manifest.blobs:
        check_size(path, blob.path, blob.size)
    return Bundle(path, manifest)
