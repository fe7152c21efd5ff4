"""Opens what a URL names: an object store, or a repository of a registry."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from paiton_artifacts.errors import UnsupportedError
from paiton_artifacts.store.address import is_registry
from paiton_artifacts.store.client import Store

if TYPE_CHECKING:
    from paiton_artifacts.store.oci.registry import Registry


def open_store(url: str, *, create: bool = False, stop: threading.Event | None = None) -> Store | Registry:
    """Opens a store.

    Args:
        url: `address.parse_root` of it, or the root of an address.
        create: make the folder of a `file` store that does not exist yet.
        stop: once set, operations that wait for a better time give up.

    Raises:
        StoreError: the environment does not configure such a store.
    """
    if not is_registry(url):
        return Store(url, create=create, stop=stop)
    from paiton_artifacts.store.oci.registry import Registry  # noqa: PLC0415  (http.client is heavy)

    return Registry(url, stop=stop)


def open_object_store(url: str, why: str, *, create: bool = False) -> Store:
    """Opens a store for what a registry cannot do.

    Args:
        url: as for `open_store`.
        why: says for the message what a registry lacks.
        create: as for `open_store`.

    Raises:
        UnsupportedError: it is a registry.
        StoreError: the environment does not configure such a store.
    """
    if is_registry(url):
        raise UnsupportedError(f"{url}: {why}", hint="use an object store (s3, gs, az, file)")
    return Store(url, create=create)
