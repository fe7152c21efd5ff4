"""GET /openapi.json: the interface in OpenAPI 3.1, made of the same declarations that check requests."""

from __future__ import annotations

import functools
from typing import Any

from paiton_runtime import VERSION
from paiton_runtime.server.http import HttpRequest, Response
from paiton_runtime.server.openai.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from paiton_runtime.server.openai.validate import object_schema

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}

_POSTS: tuple[tuple[str, type[Any], bool], ...] = (
    ("/v1/completions", CompletionRequest, True),
    ("/v1/chat/completions", ChatRequest, True),
    ("/tokenize", TokenizeRequest, False),
    ("/detokenize", DetokenizeRequest, False),
)
"""Path, body, and whether the answer may be a stream."""

_REFUSALS = {
    "400": "The request is wrong.",
    "401": "No API key, or a wrong one.",
    "404": "No such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "Too many requests wait.",
    "503": "The model is booting, or the server is about to end.",
}


async def show_description(_request: HttpRequest) -> Response:
    """Returns the document."""
    return Response.json(describe())


@functools.cache
def describe() -> dict[str, Any]:
    """Returns the interface in OpenAPI 3.1."""
    models = {"get": _operation("listModels", streams=False)}
    model = {
        "get": {
            **_operation("showModel", streams=False),
            "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
        }
    }
    posts = {path: {"post": _post(path, body, streams=streams)} for path, body, streams in _POSTS}
    bodies = {body.__name__: object_schema(body) for _, body, _ in _POSTS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "paiton-run serve", "version": VERSION, "description": "OpenAI's interface to one model."},
        "paths": {"/v1/models": models, "/v1/models/{model}": model, **posts},
        "components": {
            "schemas": {**bodies, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _post(path: str, body: type[Any], *, streams: bool) -> dict[str, Any]:
    name = path.removeprefix("/v1/").replace("/", "_")
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
    return {**_operation(name, streams=streams), "requestBody": {"required": True, "content": content}}


def _operation(name: str, *, streams: bool) -> dict[str, Any]:
    answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    refusals = {status: {"description": text, "content": error} for status, text in _REFUSALS.items()}
    return {"operationId": name, "responses": {"200": {"description": "The answer.", "content": answer}, **refusals}}
