"""What the handlers of OpenAI's interface share once the model is there."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence

from paiton_artifacts.schema import NO_ADVICE
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.openai.grammar import Grammars
from paiton_runtime.server.openai.tools.formats import ToolFormat, guess_format
from paiton_runtime.server.state import Ready, ServerState


class Serving:
    """A model that is ready, as this interface shows it.

    Attributes:
        engine: computes.
        codec: text to tokens and back.
        names: of the model; the first is what answers say.
        context: positions that a request may have.
        vocab_size: logits of the model.
        eos: the model's end-of-sequence tokens.
        created: when it was ready, seconds since 1970.
        fingerprint: same weights, software and target: same answers.
        grammars: compiles constraints.
        tools: how the model writes tool calls.
        telemetry: is told about requests.
        seed: of requests that bring none; None: random ones.
        sampling_defaults: of requests that leave something open.
    """

    def __init__(self, state: ServerState, ready: Ready) -> None:
        facts = ready.manifest.model
        self.ready = ready
        self.engine = ready.engine
        self.codec = ready.codec
        self.names = ready.model_names
        self.context = ready.engine.engine.context
        self.vocab_size = facts.vocab_size
        self.eos = frozenset(facts.eos_token_ids)
        self.created = int(time.time())
        self.fingerprint = _fingerprint(ready)
        self.grammars = Grammars(ready.codec, facts.vocab_size, facts.eos_token_ids)
        template = ready.codec.template
        wanted = state.options.tool_call_parser
        self.tools = ToolFormat(
            guess_format(None if template is None else template.source) if wanted == "auto" else wanted,
            frozenset(ready.codec.token_bytes(token).decode() for token in ready.codec.special_ids),
        )
        self.telemetry = state.telemetry
        self.seed = state.options.seed
        takes_bundles = state.options.generation_config == "auto"
        self.sampling_defaults = ready.manifest.sampling if takes_bundles else NO_ADVICE

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 unless the model, if one is named, is served."""
        if name is not None and name not in self.names:
            served = ", ".join(self.names)
            raise ApiError(
                404, f"the model {name[:200]!r} does not exist; served: {served}", param="model", code="model_not_found"
            )

    def room(self, prompt: Sequence[int], max_tokens: int | None, param: str) -> int:
        """Returns how many tokens may follow a prompt.

        Args:
            prompt: token ids.
            max_tokens: that the request asks for, if it does.
            param: the field that the prompt came in.

        Raises:
            ApiError: 400 when there is no room, or not for so many.
        """
        room = self.context + 1 - len(prompt)  # the last token that is generated needs no position
        if room < (max_tokens or 1):
            asked = "" if max_tokens is None else f", and {max_tokens} are to be generated"
            text = (
                f"This model's maximum context length is {self.context} tokens, "
                f"but the prompt has {len(prompt)}{asked}; shorten the prompt or lower max_tokens"
            )
            raise ApiError(400, text, param=param, code="context_length_exceeded")
        return room


class Interface:
    """Gives handlers the `Serving`, which is made at the first request."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._serving: Serving | None = None

    def serving(self) -> Serving:
        """Returns it.

        Raises:
            ApiError: 503 while the model is not ready.
        """
        ready = self._state.require_ready()
        if self._serving is None or self._serving.ready is not ready:
            self._serving = Serving(self._state, ready)
        return self._serving


def _fingerprint(ready: Ready) -> str:
    manifest, model = ready.manifest, ready.engine.model
    digest = hashlib.sha256(f"{manifest.generator}\0{manifest.runtime_abi}\0{model.level}\0{manifest.tp}".encode())
    for blob in manifest.blobs:
        for chunk in blob.chunks:
            digest.update(chunk.sha256.encode())
    return f"fp_{digest.hexdigest()[:12]}"
