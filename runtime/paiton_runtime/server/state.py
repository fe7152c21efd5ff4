"""What handlers know of the server: its options, how far the boot is, and what a request needs once it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from paiton_artifacts.record import dataclass
from paiton_runtime.ledger import Ledger, Row
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.options import ServeOptions

if TYPE_CHECKING:
    from paiton_artifacts.schema import Manifest
    from paiton_runtime.engine.async_engine import AsyncEngine
    from paiton_runtime.server.metrics import Metrics
    from paiton_runtime.server.telemetry import Telemetry
    from paiton_runtime.text import TextCodec

_RETRY = (("retry-after", "1"),)


class BootLedger(Ledger):
    """A ledger that also knows which stages are running."""

    def __init__(self, origin: float | None = None) -> None:
        super().__init__(origin)
        self._running: list[Row] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[Row]:
        """Measures a stage, as `Ledger.stage`."""
        running: Row | None = None
        try:
            with super().stage(name) as row:
                running = row
                self._running.append(row)
                yield row
        finally:
            if running is not None:
                self._running.remove(running)

    @property
    def running(self) -> tuple[Row, ...]:
        """Stages that have begun and not ended, oldest first; their end is not known yet."""
        return tuple(self._running)


@dataclass(frozen=True, slots=True)
class Ready:
    """What requests are served with."""

    engine: AsyncEngine
    codec: TextCodec
    manifest: Manifest
    model_names: tuple[str, ...]  # the first is what answers say


class ServerState:
    """Shared by the handlers, all on the event loop's thread; the ledger alone is written by the boot's.

    Attributes:
        options: of the command line.
        ledger: of the boot, still growing until `ready` is set.
        ready: set once, when the boot is done.
        telemetry: the engine's observer; None until the server has started.
        draining: the server takes no new requests because it is about to end.
        running: requests that are being answered, those about the server itself (/health, /metrics ...) aside.
        on_idle: called whenever the last of them ends.
    """

    def __init__(self, options: ServeOptions, ledger: BootLedger) -> None:
        self.options = options
        self.ledger = ledger
        self.ready: Ready | None = None
        self.telemetry: Telemetry | None = None
        self.draining = False
        self.running = 0
        self.on_idle: Callable[[], None] | None = None

    def begin(self) -> None:
        """A request arrived."""
        self.running += 1

    def end(self) -> None:
        """A request has been answered."""
        self.running -= 1
        if self.running == 0 and self.on_idle is not None:
            self.on_idle()

    @property
    def stage(self) -> str:
        """What the boot does right now, for people."""
        return ", ".join(row.stage for row in self.ledger.running) or "starting"

    @property
    def metrics(self) -> Metrics | None:
        """What the engine's observer counted."""
        return self.telemetry.metrics if self.telemetry is not None else None

    @property
    def engine(self) -> AsyncEngine | None:
        """The engine, once it is there."""
        return self.ready.engine if self.ready is not None else None

    @property
    def codec(self) -> TextCodec | None:
        """The tokenizer, once it is there."""
        return self.ready.codec if self.ready is not None else None

    @property
    def manifest(self) -> Manifest | None:
        """The bundle's manifest, once it has booted."""
        return self.ready.manifest if self.ready is not None else None

    @property
    def model_names(self) -> tuple[str, ...]:
        """Names that requests may use for the model; empty while they are not known."""
        return self.ready.model_names if self.ready is not None else self.options.served_model_names

    def require_ready(self) -> Ready:
        """Returns what serves a request.

        Raises:
            ApiError: 503, with the stage of the boot, or because the server is about to end or has failed.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers=_RETRY)
        if self.ready is None:
            raise ApiError(503, f"the server is booting: {self.stage}", code="booting", headers=_RETRY)
        if self.ready.engine.engine.failed is not None:
            raise ApiError(503, "the engine has failed", code="engine_failed", headers=_RETRY)
        return self.ready
