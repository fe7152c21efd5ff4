"""The chat page at `/`, and the boot as JSON at `/boot`, which the page draws; both answer at every stage."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from paiton_runtime import VERSION
from paiton_runtime.server.http import Handler, Headers, HttpRequest, Response
from paiton_runtime.server.state import ServerState

PAGE = Path(__file__).with_name("page") / "index.html"


def page_routes(state: ServerState) -> Mapping[tuple[str, str], Handler]:
    """Returns the handlers by method and path."""
    return {("GET", "/"): _page, ("GET", "/boot"): functools.partial(_boot, state)}


async def _page(_: HttpRequest) -> Response:
    headers, body = _load_page()
    return Response(200, headers, body)


@functools.cache
def _load_page() -> tuple[Headers, bytes]:
    """Returns the page and headers under which nothing but its own style and script runs, and nothing is fetched."""
    text = PAGE.read_text(encoding="utf-8")
    styles, scripts = (" ".join(_digests(text, element)) for element in ("style", "script"))
    policy = (
        f"default-src 'none'; style-src {styles}; script-src {scripts}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = (
        ("content-type", "text/html; charset=utf-8"),
        ("content-security-policy", policy),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cache-control", "no-cache"),
    )
    return headers, text.encode()


def _digests(text: str, element: str) -> list[str]:
    """Returns the sources of a content security policy (https://www.w3.org/TR/CSP3/) that allow inline elements."""
    bodies = re.findall(f"<{element}>(.*?)</{element}>", text, re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'" for body in bodies]


async def _boot(state: ServerState, _: HttpRequest) -> Response:
    """Answers with how far the boot is; times in seconds since the process was started."""
    ledger = state.ledger
    device = ledger.rows.get("device")
    body = {
        "state": state_word(state),
        "model": next(iter(state.model_names), None),
        "device": device.note if device is not None else None,
        "version": VERSION,
        "stages": ledger.as_list(),
        "running": [{"stage": row.stage, "start": round(row.start, 6)} for row in ledger.running],
        "now": round(ledger.now(), 6),
    }
    return Response.json(body, headers=(("cache-control", "no-store"),))


def state_word(state: ServerState) -> str:
    """Returns "booting", "ready", "draining" or "failed"."""
    if state.ready is None:
        return "booting"
    if state.ready.engine.engine.failed is not None:
        return "failed"
    return "draining" if state.draining else "ready"
