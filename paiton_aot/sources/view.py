"""A directory that stands for a checkpoint at a URL, for as long as somebody works with it.

Configuration and tokenizer are copied there. Weights stay where they are: an empty file of their size takes no space,
and whoever opens it reads ranges of the object instead (`remote`). Whoever read the file itself would find no header.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

from paiton_aot.checkpoint.files import MAX_JSON_BYTES
from paiton_aot.checkpoint.huggingface import INDEX, SINGLE, named_shards
from paiton_aot.checkpoint.inventory import SMALL, checkpoint_files
from paiton_aot.progress import Progress
from paiton_aot.sources.remote import AHEAD, BLOCK_BYTES, Blocks, RemoteFile, remote_file
from paiton_artifacts.errors import CheckpointNotFoundError, DiskFullError, ObjectNotFoundError, UnsupportedError
from paiton_artifacts.store.address import is_registry, parse_root
from paiton_artifacts.store.client import ObjectInfo, Store

GGUF = ".gguf"


@contextlib.contextmanager
def view(url: str) -> Iterator[Path]:
    """Yields a path at which the checkpoint of a URL can be opened.

    Args:
        url: of a directory as transformers writes it, or of a GGUF file; in an object store or on a web server.

    Raises:
        CheckpointNotFoundError: there is no checkpoint.
        CheckpointFormatError: the index of its weights is malformed.
        UsageError: the URL is malformed.
        UnsupportedError: checkpoints are not read from there.
        StoreError: the store fails.
    """
    root = parse_root(url)
    if is_registry(root):
        raise UnsupportedError(f"{url}: a registry holds bundles, not checkpoints", hint="boot it with paiton-run")
    name = urlsplit(root).path.rpartition("/")[2] or urlsplit(root).netloc
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="paiton-source-"))) / name
        store = Store(root.removesuffix(f"/{name}") if name.endswith(GGUF) else root)
        blocks = Blocks(store)
        stack.callback(blocks.close)
        if name.endswith(GGUF):
            weights = [store.info(name)]
            place = folder.parent
        else:
            folder.mkdir()
            weights = _copy_small_files(store, folder)
            place = folder
        for info in weights:
            if info is not None:
                path = place / info.key
                with path.open("xb") as file:
                    file.truncate(info.size)
                RemoteFile(blocks, info).stand_at(path)
                stack.callback(RemoteFile.leave, path)
        if not folder.exists():
            raise CheckpointNotFoundError(f"no checkpoint at {url}", hint="check the URL")
        yield folder


def copy_here(path: Path, progress: Progress) -> None:
    """Copies the weights of a view to where they stand in for it, for those who read files themselves.

    Args:
        path: of a view; nothing happens to any other checkpoint.
        progress: where to tell how it gets on.

    Raises:
        DiskFullError: they do not fit into the temporary directory.
        StoreError: the store fails.
    """
    files = {file: remote for file in checkpoint_files(path).values() if (remote := remote_file(file)) is not None}
    if not files:
        return
    with progress.bar("fetch", sum(remote.size for remote in files.values()), "B") as advance:
        for file, remote in files.items():
            buffer = memoryview(bytearray(BLOCK_BYTES))
            try:
                with file.open("r+b") as out:
                    for offset in range(0, remote.size, BLOCK_BYTES):
                        piece = buffer[: remote.size - offset]
                        remote.read_into(offset, piece)
                        out.write(piece)
                        advance(len(piece))
            except OSError as error:
                raise DiskFullError(
                    f"writing {file}: {error.strerror}", hint="point TMPDIR at a disk that holds the checkpoint"
                ) from error
            RemoteFile.leave(file)


def _copy_small_files(store: Store, folder: Path) -> list[ObjectInfo | None]:
    """Copies everything but the weights; returns these."""

    def copy(name: str) -> bool:
        try:
            (folder / name).write_bytes(store.read(name, MAX_JSON_BYTES))
        except ObjectNotFoundError:
            return False
        return True

    def look(names: Iterable[str]) -> list[ObjectInfo | None]:
        return list(pool.map(store.info, names))

    with ThreadPoolExecutor(AHEAD) as pool:
        found = dict(zip(SMALL, pool.map(copy, SMALL), strict=True))
        if not found["config.json"]:
            raise CheckpointNotFoundError(
                f"{store.url} holds no config.json", hint="give the URL of a checkpoint's directory, or of a .gguf file"
            )
        (single,) = look([SINGLE])
        if single is not None or not copy(INDEX):
            return [single]
        return look(named_shards(folder))
