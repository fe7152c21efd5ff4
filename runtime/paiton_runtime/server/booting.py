"""The boot of the served bundle, in a thread, so that the server answers meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, Thread

from paiton_artifacts.reader import Bundle
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import Manifest
from paiton_runtime.boot import BootOptions, boot_bundle
from paiton_runtime.codec_load import CodecLoad
from paiton_runtime.model import Model
from paiton_runtime.server.state import BootLedger
from paiton_runtime.text import TextCodec


@dataclass(frozen=True, slots=True)
class Booted:
    """What a boot gives; whoever takes it closes the model."""

    model: Model
    codec: TextCodec
    manifest: Manifest


class Boot:
    """Boots from the moment it is made.

    Args:
        open_it: opens the bundle, which is the ledger's first stage.
        options: of the boot.
        ledger: gets the stages.
        chat_template: in place of the bundle's.
        check: looks at the manifest before anything is loaded; what it raises ends the boot.
    """

    def __init__(
        self,
        open_it: Callable[[], Bundle],
        options: BootOptions,
        ledger: BootLedger,
        chat_template: str | None,
        check: Callable[[Manifest], None],
    ) -> None:
        self._open = open_it
        self._options = options
        self._ledger = ledger
        self._chat_template = chat_template
        self._check = check
        self._lock = Lock()  # guards the next two
        self._ended = False
        self._notify: Callable[[], object] | None = None
        self._booted: Booted | None = None
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, name="paiton-boot", daemon=True)
        self._thread.start()

    def when_ended(self, notify: Callable[[], object]) -> None:
        """Calls `notify` once the boot has ended, well or not: from its thread, or now where it has ended already."""
        with self._lock:
            if not self._ended:
                self._notify = notify
                return
        notify()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def result(self) -> Booted:
        """Waits for the end and returns what it gave; raises what went wrong."""
        self._thread.join()
        if self._booted is None:
            raise self._error or RuntimeError("the boot's thread ended without a result")
        return self._booted

    def _run(self) -> None:
        try:
            self._booted = self._boot()
        except Exception as error:  # noqa: BLE001  (handed to whoever asks for the result)
            self._error = error
        with self._lock:
            self._ended = True
            notify = self._notify
        if notify is not None:
            notify()

    def _boot(self) -> Booted:
        bundle = self._open()
        self._check(bundle.manifest)
        codec = CodecLoad(bundle, self._ledger, self._chat_template)
        model = boot_bundle(bundle, self._options, self._ledger)
        try:
            return Booted(model, codec.result(), bundle.manifest)
        except BaseException:
            model.close()
            raise
