"""Text to tokens without the tokenizers library: the bundle's encoder file, run by the host library.

Such a file is there at once, where the library takes 85 ms with the interpreter's lock for 49,000 tokens, and half a
second for 128,000. The build made it, and has compared what both give (paiton_aot/encoder). It does not cover every
text: see `Encoder.encode`.
"""

from __future__ import annotations

import ctypes
import errno
import weakref
from array import array

from paiton_artifacts.encoder_file import EncoderTexts, malformed
from paiton_artifacts.errors import PaitonError
from paiton_runtime.host import check, library


class Encoder:
    """An encoder file's text-to-token half. Encoding may happen in any thread, several at once.

    Args:
        data: the file's bytes.
        what: names the file in messages.

    Attributes:
        texts: of the tokens.

    Raises:
        VerificationError: it is malformed.
        OutOfMemoryError: there is no memory for it.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self.texts = EncoderTexts(data, what)
        handle = ctypes.c_void_p()
        status = library().paiton_encoder_create(data, len(data), ctypes.byref(handle))
        if status == -errno.EINVAL:
            raise malformed(what)
        check(status, f"reading {what}")
        self._handle = handle
        weakref.finalize(self, _destroy, handle, data)

    def encode(self, text: bytes) -> list[int] | None:
        """Returns the tokens of a text in UTF-8, or None for one that the file does not cover.

        Which those are is a matter of characters (on which the library's own Unicode tables had the say, or that
        normalisation may change), and of length: 64 MiB.
        """
        tokens = array("I", bytes(4 * len(text)))
        count = ctypes.c_uint64()
        address = tokens.buffer_info()[0]
        status = library().paiton_encode(self._handle, text, len(text), address, ctypes.byref(count))
        if status == -errno.EDOM:
            return None
        if status == -errno.EINVAL:
            raise PaitonError("text that is not UTF-8 was given to the encoder")
        check(status, f"encoding {len(text)} bytes")
        return tokens[: count.value].tolist()


def _destroy(handle: ctypes.c_void_p, data: bytes) -> None:
    """Frees an encoder; its file's bytes stay until then."""
    library().paiton_encoder_destroy(handle)
    del data
