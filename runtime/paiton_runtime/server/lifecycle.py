"""From the first connection to the exit code: boot, serving, signals, the engine's death.

* While the boot runs, every route but those about the server itself answers 503 with the stage of the boot. A signal
  ends the process at once, with 143 or 130.
* The first SIGTERM or SIGINT drains: /health and new requests get 503, and those that run have `--shutdown-timeout`
  seconds. The exit code is 0 when all of them ended by themselves, else 143 or 130.
* The second signal aborts what runs and ends the process with 143 or 130.
* An engine that has failed ends the process with 1, after its requests were told.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from threading import Thread

import uvicorn

from paiton_runtime.server.booting import Boot, Booted
from paiton_runtime.server.connection import Config
from paiton_runtime.server.listener import Listener
from paiton_runtime.server.request_log import RequestLog
from paiton_runtime.server.state import Ready, ServerState

_TELL_SECONDS = 1.0
"""How long requests have to tell their clients that they were aborted."""

_STOP_SECONDS = 10.0
"""How long the engine has to end its threads, beyond which they are left to the operating system."""


class Lifecycle:
    """One run of the server.

    Args:
        config: of uvicorn, with the application.
        state: of the server.
        boot: that runs already.
        listener: that is bound already.
        log: for what nobody asked about.
        start_engine: makes the engine of a booted model; called on the loop.

    Attributes:
        code: the exit code.
        error: why the server ends, where that was not by a signal.
        engine_failed: whether it is the engine's, which had booted.
        clean: whether every thread has ended, so that the interpreter can be left the usual way.
    """

    def __init__(
        self,
        config: Config,
        state: ServerState,
        boot: Boot,
        listener: Listener,
        log: RequestLog,
        start_engine: Callable[[Booted], Ready],
    ) -> None:
        self._server = _Server(config, self._tick)
        self._state = state
        self._boot = boot
        self._listener = listener
        self._log = log
        self._start_engine = start_engine
        self._booted: Booted | None = None
        self._deadline = 0.0  # of the drain
        self.code = 0
        self._ending: asyncio.Task[None] | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        self.error: Exception | None = None
        self.engine_failed = False
        self.clean = False

    async def run(self) -> None:
        """Serves until told to end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        self._boot.when_ended(lambda: loop.call_soon_threadsafe(self._on_boot_end))
        try:
            await self._server.serve(sockets=[self._listener.socket])
        finally:
            self._listener.close()
        await self._close()

    def _on_boot_end(self) -> None:
        try:
            self._booted = self._boot.result()
            self._state.ready = self._start_engine(self._booted)
        except Exception as error:  # noqa: BLE001  (raised by whoever runs the server)
            self._fail(error)
            return
        # Nothing that is there by now will go: no later collection has to look at it again.
        gc.freeze()
        gc.enable()
        print(self._state.ledger.table(), file=sys.stderr, flush=True)  # noqa: T201  (as the other commands do)

    def _fail(self, error: Exception) -> None:
        self.error = error
        self.code = 1
        self._end()

    def _on_signal(self, number: int) -> None:
        if self.error is not None:
            return  # it ends already, and with another code
        if self._state.ready is None or self._state.draining or self._state.options.shutdown_timeout == 0:
            self.code = 128 + number
            self._end()
            return
        self._log.write("drain", signal=signal.Signals(number).name, running=self._state.running)
        self.code = 128 + number  # until everything has ended by itself
        self._deadline = time.monotonic() + self._state.options.shutdown_timeout
        self._state.draining = True
        self._state.on_idle = self._on_idle
        if self._state.running == 0:
            self._on_idle()

    def _on_idle(self) -> None:
        """The last request has ended."""
        self._idle.set()
        if self._ending is None:
            self.code = 0
            self._end()

    def _tick(self) -> None:
        """Called ten times a second: looks at what tells nobody when it changes."""
        ready = self._state.ready
        if ready is None or self._ending is not None:
            return
        failed = ready.engine.engine.failed
        if failed is not None:
            self.engine_failed = True
            self._fail(failed)
        elif self._state.draining and time.monotonic() > self._deadline:
            self._end()

    def _end(self) -> None:
        """Begins the end, once: aborts what still runs, and lets uvicorn close the connections."""
        self._state.draining = True
        self._state.on_idle = self._idle.set
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._abort())

    async def _abort(self) -> None:
        if self._state.running and self._state.ready is not None:
            self._log.write("abort", running=self._state.running)
            self._stop_engine(self._state.ready)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), _TELL_SECONDS)
        self._server.should_exit = True

    def _stop_engine(self, ready: Ready) -> asyncio.Future[None]:
        """Stops the engine, once; the result is done when its threads have ended."""
        if self._stopping is None:
            self._stopping = _in_thread(ready.engine.engine.stop)
        return self._stopping

    async def _close(self) -> None:
        """Ends the engine and frees the model, unless a thread hangs or may do so."""
        if self._boot.running or self.engine_failed:
            return
        if self._state.ready is not None:
            done, _ = await asyncio.wait({self._stop_engine(self._state.ready)}, timeout=_STOP_SECONDS)
            if not done:
                return
        if self._booted is not None:
            self._booted.model.close()
        self.clean = True


class _Server(uvicorn.Server):
    """uvicorn's server; signals are ours, and so is what happens at each of its ticks."""

    def __init__(self, config: Config, tick: Callable[[], None]) -> None:
        super().__init__(config)
        self._tick = tick

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        self._tick()
        return await super().on_tick(counter)


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Runs `work` in a thread that nobody has to wait for, unlike those of asyncio's executor."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def finish() -> None:
        if not future.done():
            future.set_result(None)

    def run() -> None:
        work()
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            loop.call_soon_threadsafe(finish)

    Thread(target=run, name="paiton-stop", daemon=True).start()
    return future
