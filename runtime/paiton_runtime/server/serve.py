"""Puts the server together and runs it: the application, uvicorn, and the engine once the boot has given a model.

Importing this module costs as much as the rest of the server (asyncio, uvicorn, httptools, uvloop), so the boot runs
already when it is imported.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
import sys
from contextlib import suppress

import uvloop

from paiton_runtime.server.app import App
from paiton_runtime.server.booting import Boot, Booted
from paiton_runtime.server.connection import Config
from paiton_runtime.server.health import health_routes
from paiton_runtime.server.lifecycle import Lifecycle
from paiton_runtime.server.listener import Listener
from paiton_runtime.server.log_stream import LogStream
from paiton_runtime.server.options import ServeOptions
from paiton_runtime.server.request_log import RequestLog
from paiton_runtime.server.routes import routes
from paiton_runtime.server.state import Ready, ServerState
from paiton_runtime.server.telemetry import Telemetry


def serve(state: ServerState, listener: Listener, boot: Boot, tls: ssl.SSLContext | None) -> Lifecycle:
    """Serves until a signal or a failure; returns how it ended.

    Args:
        state: new.
        listener: bound.
        boot: running.
        tls: of the connections, None for plain HTTP.
    """
    options = state.options
    _raise_open_files()
    stream = LogStream(sys.stderr)
    log = RequestLog(options.log_format, requests=options.log_requests, stream=stream)
    state.telemetry = Telemetry(
        otlp_endpoint=options.otlp_traces_endpoint,
        log=log.record if options.log_requests else None,
        first_token=lambda: state.ledger.mark("first token"),
    )
    app = App(state, {**health_routes(state), **routes(state)}, log)
    lifecycle = Lifecycle(_config(app, options, tls), state, boot, listener, log, lambda it: _start_engine(state, it))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(lifecycle.run())
        state.telemetry.close()
    finally:
        stream.close()
    return lifecycle


def _start_engine(state: ServerState, booted: Booted) -> Ready:
    from paiton_runtime.engine.async_engine import AsyncEngine  # noqa: PLC0415  (while the model boots, not before)
    from paiton_runtime.engine.options import EngineOptions  # noqa: PLC0415  (likewise)

    options = state.options
    engine_options = EngineOptions(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        max_waiting=options.max_waiting,
        enable_prefix_caching=options.enable_prefix_caching,
        step_timeout=options.step_timeout,
    )
    engine = AsyncEngine(booted.model, engine_options, state.telemetry, loop=asyncio.get_running_loop())
    names = options.served_model_names or (booted.manifest.model.name,)
    return Ready(engine, booted.codec, booted.manifest, names)


def _config(app: App, options: ServeOptions, tls: ssl.SSLContext | None) -> Config:
    # What uvicorn has to say is said by the application and the lifecycle, in one form.
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return Config(
        app,
        options,
        loop="none",  # ours
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
        timeout_graceful_shutdown=1,  # the drain comes before; this is for connections that do not close
    )


def _raise_open_files() -> None:
    """Each connection is an open file, and the usual soft limit of 1,024 is meant for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
