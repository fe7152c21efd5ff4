"""Small bundles with many chunks, whose bytes a test can choose."""

from __future__ import annotations

import dataclasses
import hashlib
import random
from pathlib import Path

from paiton_artifacts.digest import cut_chunks
from paiton_artifacts.schema import Blob, Chunk, CodeObject, TemplateCheck, Tokenizer
from paiton_artifacts.writer import BundleWriter
from tests.cpu.artifacts import tiny

MIB = 1 << 20


def make(path: Path, *, seed: int = 0, mib: int = 4, chunk: int = MIB, changed: int = 0, code: bytes = b"code") -> Path:
    """Writes a bundle of two ranks; returns its path.

    Args:
        path: where.
        seed: of the weights.
        mib: size of each rank's blob, even.
        chunk: size of its chunks in bytes.
        changed: version of the first chunk of rank 0: bundles that differ in nothing else share all other chunks.
        code: contents of a code object.
    """
    size = mib * MIB
    with BundleWriter(path) as writer:
        blobs = []
        for rank in range(tiny.RANKS):
            dice = random.Random(f"{seed} {rank}")
            data = bytearray(b"".join(dice.randbytes(MIB) for _ in range(mib)))
            if changed and not rank:
                data[:8] = changed.to_bytes(8, "little")
            with writer.create_blob(rank) as file:
                file.write(data)
            parts = [
                Chunk(offset, length, hashlib.sha256(data[offset : offset + length]).hexdigest())
                for offset, length in cut_chunks(size, (), chunk)
            ]
            blobs.append(Blob(rank, f"blobs/rank-{rank}.bin", size, tuple(parts)))
        entry = writer.add_file("code/cpu/generic.so", code)
        plans = tuple(tiny._plan_file(writer, tiny.plan(family)) for family in ("forward", "sample"))
        objects = (CodeObject("cpu", "generic", entry, None, tiny.SYMBOLS, "none 1"),)
        tokenizer = Tokenizer(
            writer.add_file("tokenizer/tokenizer.json", b"{}"),
            None,
            "an empty tokenizer",
            writer.add_file("tokenizer/empty.jinja", b""),
            False,
            (),
            TemplateCheck(1, ()),
        )
        manifest = tiny.manifest(tuple(blobs), objects, plans, tokenizer)
        memory = tuple(dataclasses.replace(plan, weights_bytes=size) for plan in manifest.memory)
        writer.write_manifest(dataclasses.replace(manifest, memory=memory))
        writer.commit()
    return path


def contents(path: Path) -> dict[str, bytes]:
    """Returns every file below a directory by its path relative to it; a journal that a kill left is none."""
    files = [file for file in path.rglob("*") if file.is_file() and file.name != ".journal"]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}
