"""POST /tokenize and /detokenize, as in vLLM."""

from __future__ import annotations

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.http import HttpRequest, Response
from paiton_runtime.server.openai.prompts import check_tokens, encode, render_chat
from paiton_runtime.server.openai.requests import DetokenizeRequest, TokenizeRequest
from paiton_runtime.server.openai.serving import Interface
from paiton_runtime.server.openai.validate import read_body


async def tokenize(interface: Interface, request: HttpRequest) -> Response:
    """Returns the tokens of a text, or of a conversation as the chat template writes it."""
    serving = interface.serving()
    body = read_body(TokenizeRequest, await request.json())
    serving.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give one of prompt and messages", param="prompt", code="invalid_value")
    if body.messages is None:
        text, special = body.prompt or "", body.add_special_tokens is not False
    else:
        text = render_chat(serving, body.messages, body, with_tools=True)
        special = body.add_special_tokens is True
    ids = await encode(serving.codec, text, add_special_tokens=special)
    names = [serving.codec.tokenizer.id_to_token(token) for token in ids] if body.return_token_strs else None
    return Response.json({"count": len(ids), "max_model_len": serving.context, "tokens": ids, "token_strs": names})


async def detokenize(interface: Interface, request: HttpRequest) -> Response:
    """Returns the text of tokens, special ones included."""
    serving = interface.serving()
    body = read_body(DetokenizeRequest, await request.json())
    serving.check_model(body.model)
    check_tokens(serving, body.tokens, "tokens")
    return Response.json({"prompt": serving.codec.decode(body.tokens, skip_special_tokens=False)})
