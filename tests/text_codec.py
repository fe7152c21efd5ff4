"""A codec of a tokenizer and a template that tests make up, without a bundle."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from paiton_artifacts.schema import FileEntry, SpecialToken
from paiton_runtime.text import TextCodec


@dataclass
class Files:
    """The part of `reader.Bundle` that a codec uses."""

    contents: dict[str, bytes]
    manifest: Any
    path: Path = Path("test.bundle")

    def read_file(self, entry: FileEntry) -> bytes:
        """Returns a file's contents, as `Bundle.read_file` does."""
        return self.contents[entry.path]


def byte_tokenizer() -> Tokenizer:
    """Byte-level BPE without merges: every byte is a token, so characters are cut apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>"])
    return tokenizer


def sentencepiece_tokenizer() -> bytes:
    """A tokenizer in the manner of Llama 2: words begin with a low line, and bytes stand for unknown characters."""
    vocabulary = {"<unk>": 0, **{f"<0x{byte:02X}>": 1 + byte for byte in range(256)}}
    for word in ("\u2581", "a", "b", "\u2581a", "ab"):
        vocabulary[word] = len(vocabulary)
    merges = [("\u2581", "a"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer.to_str().encode()


def make_codec(
    template: str | None = None,
    *,
    add_bos: bool = False,
    source: bytes | None = None,
    chat_template: str | None = None,
    encoder: bytes | None = None,
) -> TextCodec:
    """Returns a codec of `byte_tokenizer`, or of the tokenizer.json in `source`; id 256 begins a text, 257 ends it.

    With `encoder`, the file that the build makes of it, the tokenizer.json is read when that does not suffice.
    """

    def entry(name: str) -> FileEntry:
        return FileEntry(name, len(contents[name]), hashlib.sha256(contents[name]).hexdigest())

    contents = {"tokenizer.json": source or byte_tokenizer().to_str().encode()}
    if template is not None:
        contents["template"] = template.encode()
    if encoder is not None:
        contents["encoder.bin"] = encoder
    tokenizer = SimpleNamespace(
        file=entry("tokenizer.json"),
        encoder=None if encoder is None else entry("encoder.bin"),
        chat_template=None if template is None else entry("template"),
        add_bos=add_bos,
        special_tokens=(SpecialToken("bos_token", "<s>"), SpecialToken("eos_token", "</s>")),
    )
    manifest = SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(bos_token_id=256, eos_token_ids=(257,)))
    files: Any = Files(contents, manifest)
    return TextCodec(files, chat_template)
