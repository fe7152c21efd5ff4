"""`paiton-build --cache`: takes a finished bundle of the same key where there is one, else builds it and keeps it."""

from __future__ import annotations

import hashlib
import importlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paiton_aot.cache.links import place
from paiton_aot.cache.local import LocalCache, model_name
from paiton_aot.cache.stages import BlobStages
from paiton_aot.identity.build_key import BuildKey
from paiton_aot.identity.inputs import Inputs, identify
from paiton_aot.options import BuildOptions
from paiton_aot.progress import Progress
from paiton_artifacts.errors import UsageError
from paiton_artifacts.layout import MANIFEST_NAME
from paiton_artifacts.store.address import is_url, parse_root
from paiton_artifacts.store.locks import FileLock
from paiton_artifacts.trust.policy import Policy
from paiton_artifacts.writer import BundleWriter

if TYPE_CHECKING:
    from paiton_aot.build import BuildResult
    from paiton_aot.cache.remote import RemoteCache
    from paiton_artifacts.store.address import Address

SHOWN = 8
"""Components that a line for people names."""


@dataclass(frozen=True, slots=True)
class Request:
    """A build through a cache.

    Attributes:
        model: the checkpoint.
        output: where the bundle is to be, besides the cache; None: only there.
        options: what to build.
        cache: directory, or URL of a store.
        force: replace an existing output.
        timeout: seconds to wait for another build of the same key.
        policy: what a bundle from a URL needs to be taken.
    """

    model: Path
    output: Path | None
    options: BuildOptions
    cache: str
    force: bool
    timeout: float
    policy: Policy


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a build through a cache.

    Attributes:
        bundle: path or URL (by digest) of the bundle.
        manifest_sha256: digest of its manifest.
        key: of the build.
        hit: nothing was built.
        differs: components in which the key differs from that of the last build of the model; None where there is none.
        seconds: that it took altogether.
        result: of the build, if there was one.
    """

    bundle: str
    manifest_sha256: str
    key: BuildKey
    hit: bool
    differs: tuple[str, ...] | None
    seconds: float
    result: BuildResult | None

    def as_json(self) -> dict[str, Any]:
        """Returns the outcome as plain data, with what a build without a cache tells if there was one."""
        told: dict[str, Any] = {}
        if self.result is not None:
            told = importlib.import_module("paiton_aot.report").built(self.result)
        return {
            **told,
            "bundle": self.bundle,
            "manifest_sha256": self.manifest_sha256,
            "key": self.key.value,
            "hit": self.hit,
            "differs": None if self.differs is None else list(self.differs),
            "total_seconds": round(self.seconds, 3),
        }

    def summary(self) -> str:
        """Returns one line for people."""
        what = "found in the cache" if self.hit else "built"
        return f"{self.bundle}: {what} in {self.seconds:.1f} s (key {self.key.value[:16]})"


_Found = tuple[str, str, "BuildResult | None", tuple[str, ...] | None]
"""Bundle, digest of its manifest, result of the build and what differs, as in `Outcome`."""


def cached_build(request: Request, progress: Progress) -> Outcome:
    """Returns a bundle of what was asked for, from the cache where it can.

    Raises:
        OutputExistsError: something is at the output; as a build without a cache.
        LockTimeoutError: another build of the key does not end.
        StoreError: the cache fails.
        PaitonError: as a build.
    """
    start = time.perf_counter()
    if request.output is not None:
        BundleWriter(request.output, force=request.force)  # refuses an output before anything is read
    inputs = identify(request.model, request.options, progress)
    build = _through_store if is_url(request.cache) else _through_directory
    bundle, digest, result, differs = build(request, inputs, progress)
    return Outcome(bundle, digest, inputs.key, result is None, differs, time.perf_counter() - start, result)


def look_up(request: Request, key: BuildKey, progress: Progress) -> dict[str, Any]:
    """Returns, as plain data, what a build through the cache would find: nothing is built, fetched or changed.

    Raises:
        StoreError: the cache fails.
    """
    cache: LocalCache | RemoteCache
    cache = _open_store(request, progress) if is_url(request.cache) else LocalCache(Path(request.cache))
    found = cache.find(key.value)
    previous = None if found else cache.previous(_model(request))
    differs = None if previous is None else key.difference(previous.components)
    return {"hit": found is not None, "bundle": str(found) if found else None, "differs": differs}


def _through_directory(request: Request, inputs: Inputs, progress: Progress) -> _Found:
    cache, key = LocalCache(Path(request.cache)), inputs.key.value
    result, differs = None, None
    if (found := cache.find(key)) is None:
        with _lock(cache.locks, key, request.timeout, progress):
            if (found := cache.find(key)) is None:
                if cache.discard(key):
                    progress.event("damaged", f"the cache's bundle of {key[:16]} was changed: building anew", key=key)
                model = _model(request)
                differs = _tell_why(inputs.key, cache.previous(model), progress)
                stages = BlobStages(cache.root, inputs.key)
                result = _build(request, inputs, cache.path(key), progress, force=False, stages=stages)
                cache.record(key, model)
                found = cache.path(key)
    if request.output is not None:
        place(found, BundleWriter(request.output, force=request.force))
    shown = found if request.output is None else request.output
    return str(shown), _digest(found), result, differs


def _through_store(request: Request, inputs: Inputs, progress: Progress) -> _Found:
    cache, key = _open_store(request, progress), inputs.key.value
    result, differs = None, None
    if (found := cache.find(key)) is None and not cache.store.writable:
        return _without_keeping(request, inputs, cache, progress)
    if found is None:
        locks = request.options.cache_dir / "locks"
        with (
            _lock(locks, key, request.timeout, progress),
            cache.lease(key, request.timeout, lambda: cache.find(key) is not None),
        ):
            if (found := cache.find(key)) is None:
                differs = _tell_why(inputs.key, cache.previous(_model(request)), progress)
                found, result = _build_and_publish(request, inputs, cache, progress)
    if request.output is not None and result is None:
        cache.deliver(found, request.output, force=request.force)
    shown = str(found) if request.output is None else str(request.output)
    return shown, found.digest or "", result, differs


def _open_store(request: Request, progress: Progress) -> RemoteCache:
    from paiton_aot.cache.remote import RemoteCache  # noqa: PLC0415  (a directory needs no client)
    from paiton_artifacts.store.opening import open_object_store  # noqa: PLC0415

    root = parse_root(request.cache)
    store = open_object_store(root, "a registry cannot be a build cache", create=True)
    return RemoteCache(root, store, request.policy, progress)


def _without_keeping(request: Request, inputs: Inputs, cache: RemoteCache, progress: Progress) -> _Found:
    """Builds for the output alone: the cache is read only."""
    if request.output is None:
        raise UsageError(
            f"{cache.root} has no bundle of this key and is read only", hint="name an output with -o, to build it there"
        )
    differs = _tell_why(inputs.key, cache.previous(_model(request)), progress)
    result = _build(request, inputs, request.output, progress, force=request.force)
    return str(request.output), _digest(request.output), result, differs


def _build_and_publish(
    request: Request, inputs: Inputs, cache: RemoteCache, progress: Progress
) -> tuple[Address, BuildResult]:
    from paiton_aot.cache.remote import scratch_output  # noqa: PLC0415  (as above)

    if request.output is not None:
        result = _build(request, inputs, request.output, progress, force=request.force)
        return cache.publish(request.output, inputs.key.value, _model(request)), result
    with scratch_output(request.options.cache_dir) as scratch:
        result = _build(request, inputs, scratch, progress, force=False)
        return cache.publish(scratch, inputs.key.value, _model(request)), result


def _build(
    request: Request,
    inputs: Inputs,
    output: Path,
    progress: Progress,
    *,
    force: bool,
    stages: BlobStages | None = None,
) -> BuildResult:
    build = importlib.import_module("paiton_aot.build")  # half a second that a hit does without
    result: BuildResult = build.build(
        request.model, output, request.options, force=force, progress=progress, inputs=inputs, stages=stages
    )
    return result


def _lock(folder: Path, key: str, timeout: float, progress: Progress) -> FileLock:
    path = folder / f"{key}.lock"
    return FileLock(
        path,
        timeout=timeout,
        waiting=lambda: progress.event(
            "waiting", f"waiting for another build of the same key ({path})", lock=str(path)
        ),
    )


def _tell_why(key: BuildKey, previous: BuildKey | None, progress: Progress) -> tuple[str, ...] | None:
    """Tells why nothing fits in the cache; returns the components that differ."""
    differs = None if previous is None else tuple(key.difference(previous.components))
    if differs is None:
        why = "no build of this model is in the cache"
    elif differs:
        more = f" and {len(differs) - SHOWN} more" if len(differs) > SHOWN else ""
        why = f"changed since the last build of this model: {', '.join(differs[:SHOWN])}{more}"
    else:
        why = "the last build of this model is gone or damaged"
    progress.event("miss", why, key=key.value, differs=None if differs is None else list(differs))
    return differs


def _model(request: Request) -> str:
    # A checkpoint from elsewhere lies in a directory whose name may be a commit's.
    origin = request.options.origin.rpartition("/")[2]
    return model_name(request.options.name or origin or request.model.resolve().name)


def _digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / MANIFEST_NAME).read_bytes()).hexdigest()
