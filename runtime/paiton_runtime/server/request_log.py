"""The log on stderr: one line per finished request, and what went wrong, as text or as JSON."""

from __future__ import annotations

import json
import sys
import time
import traceback

from paiton_runtime.server.log_stream import Stream


class RequestLog:
    """Writes one line a record, in one call, and never raises: a full disk or a closed pipe must not end a request.

    Args:
        style: "text" (`key=value`, strings quoted as in JSON where needed) or "json" (one object a line).
        requests: whether finished requests are logged; errors always are.
        stream: by default stderr, as it is at the time of writing.
    """

    def __init__(self, style: str = "text", *, requests: bool = True, stream: Stream | None = None) -> None:
        self._json = style == "json"
        self._requests = requests
        self._stream = stream

    def request(self, **fields: object) -> None:
        """Records a finished request, as HTTP has it; what the engine has to say of it is a record of its own."""
        if self._requests:
            self.write("http", **fields)

    def record(self, fields: dict[str, object]) -> None:
        """Records a line that names its own event."""
        event = str(fields.get("event", "note"))
        self.write(event, **{name: value for name, value in fields.items() if name != "event"})

    def failure(self, message: str, error: BaseException, **fields: object) -> None:
        """Records an error that nobody expected, with its traceback."""
        trace = "".join(traceback.format_exception(error)).rstrip()
        if self._json:
            self.write("error", message=message, **fields, traceback=trace)
        else:
            self.write("error", message=message, **fields)
            self._print(trace)

    def write(self, event: str, **fields: object) -> None:
        """Records anything else."""
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1000):03d}Z"
        record = {"time": stamp, "event": event, **fields}
        if self._json:
            self._print(json.dumps(record, default=str))
        else:
            words = [f"{name}={_text(value)}" for name, value in list(record.items())[2:]]
            self._print(" ".join([stamp, event, *words]))

    def _print(self, line: str) -> None:
        stream = self._stream or sys.stderr
        try:
            stream.write(line + "\n")
            stream.flush()
        except (OSError, ValueError):
            return


def _text(value: object) -> str:
    """Returns a value in one word; whatever a client chose is quoted, so that it cannot forge a line."""
    if isinstance(value, float):
        return f"{value:.6f}"
    word = str(value)
    plain = word.isascii() and word.isprintable() and word != "" and not set(word) & set(' "=\\')
    return word if plain else json.dumps(word)
