"""What a store holds, and what differs between two bundles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from paiton_artifacts.errors import ManifestError, ObjectNotFoundError, PaitonError
from paiton_artifacts.schema import Manifest
from paiton_artifacts.store.client import Store
from paiton_artifacts.store.fetch import default_workers
from paiton_artifacts.store.items import bundle_bytes, file_sizes, items_of
from paiton_artifacts.store.keys import MANIFESTS
from paiton_artifacts.store.remote import decode_manifest, read_manifest, read_tag, tags

if TYPE_CHECKING:
    from paiton_artifacts.store.oci.registry import Registry

_Row = tuple[str, str, str, datetime | None]
"""Name, tag, digest and time, as in `Listed`."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A tag of a store, or a manifest that none holds.

    Attributes:
        name: of the bundle; empty without a tag.
        tag: likewise.
        digest: of the manifest.
        modified: when the tag, or the manifest without one, was written; None where the store does not say.
        manifest: what it says; None if the store has none, or a damaged one.
        problem: what is wrong then.
    """

    name: str
    tag: str
    digest: str
    modified: datetime | None
    manifest: Manifest | None
    problem: str = ""

    def as_json(self) -> dict[str, object]:
        """Returns it for programs; sizes in bytes."""
        return {
            "name": self.name or None,
            "tag": self.tag or None,
            "digest": f"sha256:{self.digest}",
            "modified": self.modified.isoformat() if self.modified else None,
            "model": self.manifest.model.name if self.manifest else None,
            "bytes": bundle_bytes(self.manifest) if self.manifest else None,
            "problem": self.problem or None,
        }


def list_bundles(store: Store | Registry, name: str | None = None, *, untagged: bool = False) -> list[Listed]:
    """Returns the tags of a store in order, then the manifests without one if asked for.

    Args:
        store: the store, or a repository.
        name: only tags of this bundle.
        untagged: also manifests that no tag holds.

    Raises:
        StoreError: the store fails or cannot list.
    """
    rows = _rows(store, name, untagged=untagged) if isinstance(store, Store) else _tags_of(store, untagged=untagged)

    def look(row: _Row) -> Listed:
        digest = row[2]
        try:
            return Listed(*row, decode_manifest(read_manifest(store, digest, digest), digest))
        except PaitonError as error:
            return Listed(*row, None, error.message)

    with ThreadPoolExecutor(default_workers()) as pool:
        return list(pool.map(look, rows))


def _rows(store: Store, name: str | None, *, untagged: bool) -> list[_Row]:
    rows: list[_Row] = []
    for found, tag, info in tags(store):
        if name in (None, found):
            rows.append((found, tag, read_tag(store, found, tag) or "", info.modified))
    if untagged and name is None:
        held = {digest for _, _, digest, _ in rows}
        for info in store.objects(MANIFESTS):
            digest = info.key.rpartition("/")[2]
            if len(digest) == 64 and digest not in held:
                rows.append(("", "", digest, info.modified))
    return rows


def _tags_of(registry: Registry, *, untagged: bool) -> list[_Row]:
    """Returns the tags of a repository that hold bundles, then the bundles that only the tag of their digest keeps."""
    rows: list[_Row] = []
    kept: list[str] = []
    for tag in registry.tags():
        try:
            digest = registry.find(tag).bundle
        except (ManifestError, ObjectNotFoundError):
            continue  # something else's, or it has just been removed
        if tag == f"sha256-{digest}":
            kept.append(digest)
        else:
            rows.append((registry.url.rpartition("/")[2], tag, digest, None))
    held = {digest for _, _, digest, _ in rows}
    return rows + [("", "", digest, None) for digest in kept if untagged and digest not in held]


@dataclass(frozen=True, slots=True)
class Difference:
    """How one bundle differs from another.

    Attributes:
        facts: names of what the manifests say differently about the model, and both values.
        added: files that only the second has, with their bytes.
        removed: files that only the first has.
        changed: files with other contents.
        shared_bytes: of objects that both have.
        new_bytes: of objects that only the second has: what a push of it to a store with the first moves.
    """

    facts: dict[str, tuple[object, object]]
    added: dict[str, int]
    removed: dict[str, int]
    changed: dict[str, int]
    shared_bytes: int
    new_bytes: int

    def as_json(self) -> dict[str, object]:
        """Returns it for programs."""
        return {
            "facts": {name: list(values) for name, values in self.facts.items()},
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "shared_bytes": self.shared_bytes,
            "new_bytes": self.new_bytes,
        }


def compare(first: Manifest, second: Manifest) -> Difference:
    """Returns how the second bundle differs from the first."""
    sizes = file_sizes(first), file_sizes(second)
    contents = _contents(first), _contents(second)
    have = {item.digest for item in items_of(first)}
    new = sum(item.size for item in items_of(second) if item.digest not in have)
    total = sum(item.size for item in items_of(second))
    both = sizes[0].keys() & sizes[1].keys()
    return Difference(
        facts=_facts(first, second),
        added={path: size for path, size in sorted(sizes[1].items()) if path not in sizes[0]},
        removed={path: size for path, size in sorted(sizes[0].items()) if path not in sizes[1]},
        changed={path: sizes[1][path] for path in sorted(both) if contents[0][path] != contents[1][path]},
        shared_bytes=total - new,
        new_bytes=new,
    )


def _contents(manifest: Manifest) -> dict[str, list[tuple[int, str]]]:
    """Returns what each file consists of: offsets and digests."""
    contents: dict[str, list[tuple[int, str]]] = {}
    for item in items_of(manifest):
        for place in item.places:
            contents.setdefault(place.path, []).append((place.offset, item.digest))
    return {path: sorted(parts) for path, parts in contents.items()}


def _facts(first: Manifest, second: Manifest) -> dict[str, tuple[object, object]]:
    """Returns the fields of the model, and a few of the manifest, that differ."""
    pairs: dict[str, tuple[object, object]] = {
        name: (getattr(first.model, name), getattr(second.model, name)) for name in type(first.model).__annotations__
    }
    pairs |= {name: (getattr(first, name), getattr(second, name)) for name in ("generator", "runtime_abi", "tp")}
    pairs["targets"] = _targets(first), _targets(second)
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _targets(manifest: Manifest) -> list[str]:
    return [f"{memory.target} ({memory.profile})" for memory in manifest.memory]
