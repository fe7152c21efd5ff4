"""Loads a bundle's tokenizer in a thread while its model boots."""

from __future__ import annotations

from threading import Thread

from paiton_artifacts.reader import Bundle
from paiton_runtime.ledger import Ledger
from paiton_runtime.text import TextCodec


class CodecLoad:
    """A tokenizer that is on its way.

    Args:
        bundle: as `chat_template`, see `TextCodec`.
        ledger: gets the stage "tokenizer".
        chat_template: in place of the bundle's.
    """

    def __init__(self, bundle: Bundle, ledger: Ledger, chat_template: str | None = None) -> None:
        self._bundle = bundle
        self._ledger = ledger
        self._chat_template = chat_template
        self._codec: TextCodec | None = None
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, name="paiton-tokenizer", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._ledger.stage("tokenizer"):
                self._codec = TextCodec(self._bundle, self._chat_template)
        except Exception as error:  # noqa: BLE001  (handed to whoever asks for the result)
            self._error = error

    def result(self) -> TextCodec:
        """Waits for the tokenizer; raises what went wrong."""
        self._thread.join()
        if self._codec is None:
            raise self._error or RuntimeError("the tokenizer's thread ended without a result")
        return self._codec
