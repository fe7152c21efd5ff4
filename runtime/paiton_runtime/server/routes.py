"""All routes of the server but those that answer about its health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from paiton_runtime.server.http import EventStream, Handler, HttpRequest, Response
from paiton_runtime.server.metrics import metrics_routes
from paiton_runtime.server.pages import page_routes
from paiton_runtime.server.state import ServerState


def routes(state: ServerState) -> Mapping[tuple[str, str], Handler]:
    """Returns the handlers by method and path; see `Router`."""
    return {**page_routes(state), **metrics_routes(state), **_openai_routes(state)}


def _openai_routes(state: ServerState) -> Mapping[tuple[str, str], Handler]:
    from paiton_runtime.server.openai import chat, completions, description, models, tokenize  # noqa: PLC0415
    from paiton_runtime.server.openai.serving import Interface  # noqa: PLC0415

    interface = Interface(state)

    def bound(handler: Callable[[Interface, HttpRequest], Awaitable[Response | EventStream]]) -> Handler:
        return lambda request: handler(interface, request)

    return {
        ("GET", "/v1/models"): bound(models.list_models),
        ("GET", "/v1/models/*"): bound(models.show_model),
        ("POST", "/v1/completions"): bound(completions.create_completion),
        ("POST", "/v1/chat/completions"): bound(chat.create_chat_completion),
        ("POST", "/tokenize"): bound(tokenize.tokenize),
        ("POST", "/detokenize"): bound(tokenize.detokenize),
        ("GET", "/openapi.json"): description.show_description,
    }
