"""GET /v1/models."""

from __future__ import annotations

from typing import Any

from paiton_runtime.server.http import HttpRequest, Response
from paiton_runtime.server.openai.serving import Interface, Serving


async def list_models(interface: Interface, _request: HttpRequest) -> Response:
    """Lists the names under which the model is served."""
    serving = interface.serving()
    return Response.json({"object": "list", "data": [_model(serving, name) for name in serving.names]})


async def show_model(interface: Interface, request: HttpRequest) -> Response:
    """Shows the model that the rest of the path names."""
    serving = interface.serving()
    serving.check_model(name := request.tail)
    return Response.json(_model(serving, name))


def _model(serving: Serving, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": serving.created,
        "owned_by": "paiton",
        "root": serving.ready.manifest.model.name,
        "parent": None,
        "max_model_len": serving.context,
    }
