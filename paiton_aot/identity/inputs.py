"""What goes into one build: digests of its checkpoint, and the key that follows from them and the options."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from paiton_aot.checkpoint.inventory import checkpoint_files
from paiton_aot.identity.build_key import BuildKey, make_key
from paiton_aot.identity.file_digests import FileDigests
from paiton_aot.options import BuildOptions
from paiton_aot.progress import Progress


@dataclass(frozen=True, slots=True)
class Inputs:
    """Identified inputs.

    Attributes:
        key: of the build.
        digests: of the checkpoint's files.
        seconds: that identifying took.
    """

    key: BuildKey
    digests: FileDigests
    seconds: float

    def check_unchanged(self) -> None:
        """Checks that the checkpoint is still the one that was identified.

        Raises:
            CheckpointFormatError: a file of it was changed or replaced.
        """
        self.digests.check_unchanged()


def identify(model: Path, options: BuildOptions, progress: Progress) -> Inputs:
    """Identifies the inputs of a build; reads every byte of the checkpoint, unless its digests are remembered.

    Raises:
        CheckpointError: there is no checkpoint, or a file of it cannot be read.
        UsageError: a tuning table cannot be read, or a package that the build needs is not installed.
    """
    start = time.perf_counter()
    files = checkpoint_files(model)
    digests = FileDigests(options.cache_dir)
    with progress.bar("identify", sum(path.stat().st_size for path in files.values()), "B") as advance:
        key = make_key(digests.digest_all(files, advance), options)
    return Inputs(key, digests, time.perf_counter() - start)
