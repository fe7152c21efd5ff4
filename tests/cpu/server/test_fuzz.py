"""What the server's own description allows, what it does not, and what is no request: nothing is the server's fault."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from tests.cpu.server.server_process import Answer, Server

POSTS = ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")
DOCUMENTED = {200, 400, 404, 408, 413, 415, 429}
MOST_TOKENS = 3
"""Answers are kept short: what is looked for is in the requests."""

BOUNDS = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,  # the same cases each time: a failure that comes and goes helps nobody
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from([{}, [], [[]], "", "\ud800", "\0", 10**400, -1, 2**31, 2**63, 2**64, {"type": "json_schema"}]),
)
JSON = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    described: dict[str, Any] = server.get("/openapi.json").json()
    return described


def keep_short(body: Any) -> Any:
    """Returns a body that asks for a few tokens of a model that exists, and that is otherwise the same."""
    if not isinstance(body, dict):
        return body
    known = {name: value for name, value in body.items() if name != "model"}
    if type(known.get("n")) is int:
        known["n"] = min(known["n"], 2)
    limits = ("max_tokens", "max_completion_tokens")
    known |= {name: min(known[name], MOST_TOKENS) for name in limits if type(known.get(name)) is int}
    if isinstance(known.get("prompt"), list):
        known["prompt"] = known["prompt"][:4]
    return {"max_tokens": MOST_TOKENS, **known}


def check(answer: Answer) -> None:
    """An answer is a documented one, errors have OpenAI's form, and streams end as they should."""
    assert answer.status in DOCUMENTED, answer.body
    if answer.status != 200:
        assert answer.error["message"]
    elif answer.headers["content-type"].startswith("text/event-stream"):
        assert answer.body.endswith(b"data: [DONE]\n\n")
        events = [line.removeprefix(b"data: ") for line in answer.body.split(b"\n\n")[:-2]]
        failed = [event["error"] for event in map(json.loads, events) if "error" in event]
        assert all(error["code"] != "internal" for error in failed)
    else:
        assert isinstance(answer.json(), dict)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["fits", "does not fit"])
def test_what_the_description_leads_to(
    server: Server, document: dict[str, Any], path: str, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(document)

    @BOUNDS
    @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
    def run(case: Case[Any]) -> None:
        body = keep_short(case.body)
        try:
            data = json.dumps(body).encode()
        except (TypeError, ValueError):  # what JSON cannot say
            return
        check(server.post(path, data))

    run()
    assert server.get("/health").status == 200


@pytest.mark.parametrize("path", POSTS)
def test_odd_values_in_every_field(server: Server, document: dict[str, Any], path: str) -> None:
    name = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = sorted(document["components"]["schemas"][name.rpartition("/")[2]]["properties"])
    needed = {"prompt": "x", "messages": [{"role": "user", "content": "x"}], "tokens": [1]}
    required = {field: value for field, value in needed.items() if field in fields}
    if path == "/tokenize":
        del required["messages"]

    @BOUNDS
    @given(body=st.dictionaries(st.sampled_from(fields), JSON, min_size=1, max_size=3))
    def run(body: dict[str, Any]) -> None:
        check(server.post(path, keep_short({**required, **body})))

    run()
    assert server.get("/health").status == 200


@BOUNDS
@given(name=st.text(min_size=1, max_size=20))
def test_names_of_models(server: Server, name: str) -> None:
    quoted = "".join(f"%{byte:02X}" for byte in name.encode(errors="replace"))
    answer = server.get(f"/v1/models/{quoted}")
    assert (answer.status, answer.error["code"]) == (404, "model_not_found")


@BOUNDS
@given(
    body=st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"a":' * 50_000, b"1" * 10_000, b"\xed\xa0\x80"])
)
def test_bodies_that_are_no_json(server: Server, body: bytes) -> None:
    answer = server.post("/v1/completions", body)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
