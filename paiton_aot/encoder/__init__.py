"""The encoder file of a tokenizer: made from its tokenizer.json, and compared with the tokenizers library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from paiton_aot.encoder.check import check_encoder
from paiton_aot.encoder.content import encoder_content
from paiton_aot.encoder.pattern import NotCoveredError
from paiton_artifacts.limits import MAX_TOKENIZER_BYTES
from paiton_kernels.cache_file import write_atomically
from paiton_runtime.host import LIBRARY

if TYPE_CHECKING:
    from paiton_aot.identity.build_key import BuildKey

_REFUSAL = 200
"""Characters of a reason."""

_INPUTS = ("sources/build", "sources/format", "tool/numpy", "tool/tokenizers")
"""Components of a build's key that an encoder file depends on, beside the tokenizer itself and the host library."""


def make_encoder(tokenizer_json: bytes) -> tuple[bytes | None, str]:
    """Returns the encoder file of a tokenizer.json that the tokenizers library reads.

    Returns:
        The file's bytes and an empty text; or None, and why there is none.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    try:
        content = encoder_content(json.loads(tokenizer_json), tokenizer)
        data = content.pack()
        check_encoder(content, data, tokenizer)
    except NotCoveredError as error:
        return None, str(error)[:_REFUSAL]
    return (data, "") if len(data) <= MAX_TOKENIZER_BYTES else (None, f"a file of {len(data)} bytes")


def cached_encoder(tokenizer_json: bytes, key: BuildKey, cache_dir: Path) -> tuple[bytes | None, str]:
    """Returns what `make_encoder` does, from the cache where it has been made before: it takes two seconds.

    Args:
        tokenizer_json: of the tokenizers library.
        key: of the build.
        cache_dir: where encoder files are kept, beside compiled kernels.
    """
    digest = hashlib.sha256(LIBRARY.read_bytes())
    for part in (tokenizer_json, *(key.components[name].encode() for name in _INPUTS)):
        digest.update(hashlib.sha256(part).digest())
    path = cache_dir / "encoder" / f"{digest.hexdigest()}.bin"
    if path.is_file():
        return path.read_bytes(), ""
    data, refusal = make_encoder(tokenizer_json)
    if data is not None:
        write_atomically(path, data)
    return data, refusal
