"""`paiton-run serve`: an OpenAI-compatible server in front of one bundle.

The order is what makes it start fast: the socket, then what the boot needs and the boot itself in a thread, then what
HTTP needs, while the boot reads weights and runs its first steps.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import TYPE_CHECKING, NoReturn

from paiton_artifacts.errors import PaitonError, UsageError
from paiton_runtime.commands.serve_arguments import serve_options
from paiton_runtime.server.listener import Listener
from paiton_runtime.server.options import ServeOptions, TlsOptions

if TYPE_CHECKING:
    import ssl

    from paiton_runtime.server.booting import Boot
    from paiton_runtime.server.lifecycle import Lifecycle
    from paiton_runtime.server.state import ServerState


def run(args: argparse.Namespace) -> int:
    """Serves until a signal or a failure; see `server/lifecycle.py` for the exit codes."""
    gc.disable()  # until the server is ready: what imports and boot leave behind stays anyway
    options = serve_options(args)
    tls = _tls_context(options.tls) if options.tls is not None else None
    listener = Listener(options)
    print(f"listening on {listener.url}", file=sys.stderr, flush=True)
    try:
        state, boot = _start_boot(args, options)
    except BaseException:
        listener.close()
        raise
    try:
        from paiton_runtime.server.serve import serve  # noqa: PLC0415  (what the boot need not wait for)

        ended = serve(state, listener, boot, tls)
    except BaseException as error:
        listener.close()
        if boot.running:
            _leave(_tell(error))
        raise
    return _finish(ended)


def _start_boot(args: argparse.Namespace, options: ServeOptions) -> tuple[ServerState, Boot]:
    # Below the bound socket, where clients wait already.
    from paiton_runtime.commands.frozen_flags import asked, check_bundle  # noqa: PLC0415
    from paiton_runtime.commands.session import boot_options, open_stage  # noqa: PLC0415
    from paiton_runtime.ledger import process_start  # noqa: PLC0415
    from paiton_runtime.server.booting import Boot  # noqa: PLC0415
    from paiton_runtime.server.memory import return_large_blocks  # noqa: PLC0415
    from paiton_runtime.server.state import BootLedger, ServerState  # noqa: PLC0415

    return_large_blocks()
    ledger = BootLedger(process_start())
    wanted = asked(args)

    boot = Boot(
        lambda: open_stage(args, ledger),
        boot_options(args),
        ledger,
        options.chat_template,
        lambda manifest: check_bundle(manifest, wanted, options, args.target),
    )
    return ServerState(options, ledger), boot


def _tell(error: BaseException) -> int:
    """Prints an error and returns its exit code, as `command_line.run` would."""
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    print(f"paiton-run: error: {error}", file=sys.stderr)
    return error.exit_code if isinstance(error, PaitonError) else 1


def _finish(ended: Lifecycle) -> int:
    """Returns the exit code, or leaves with it where a thread would keep the interpreter from ending."""
    error = ended.error
    if error is not None and ended.clean and not ended.engine_failed:
        raise error
    if error is not None:
        print(f"paiton-run: error: {'the engine has failed: ' * ended.engine_failed}{error}", file=sys.stderr)
    if not ended.clean:
        _leave(ended.code)
    return ended.code


def _leave(code: int) -> NoReturn:
    """Ends the process while threads are inside native code, where the interpreter's own end could crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tls_context(options: TlsOptions) -> ssl.SSLContext:
    """Returns the context of the connections; made before anything else, so that a wrong file is told at once."""
    import ssl  # noqa: PLC0415  (most servers stand behind something that does TLS)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.certfile, options.keyfile)
        context.verify_mode = ssl.VerifyMode(options.cert_reqs)
        if options.ca_certs is not None:
            context.load_verify_locations(options.ca_certs)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(str(file) for file in (options.certfile, options.keyfile, options.ca_certs) if file)
        raise UsageError(f"TLS files {files}: {error.strerror or error}", hint="see --ssl-certfile") from error
    return context
