"""Kernels of well-known models: what recorded tables, tests of code objects and docs/gpu-kernels.md are about.

Which kernels a model needs is the planner's knowledge (paiton_aot/targets/gpu/lower.py). This is the same for a rank's
share given by its sizes, without a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from paiton_kernels.gpu.comm import comm_layout, wire_of
from paiton_kernels.gpu.devices import Target
from paiton_kernels.gpu.families import FAMILIES
from paiton_kernels.gpu.spec import Constant, Step
from paiton_kernels.gpu.tuning import Request

_NO_HEADS: dict[str, Constant] = {"Q_HEADS": 0, "KV_HEADS": 0, "HEAD_DIM": 0, "KV": "BF16"}

QUANTIZE_TOKENS = 64
"""Up to this many tokens a linear layer quantises its input as it loads; beyond, `quantize` does it once."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of one rank's share of a model.

    Attributes:
        name: for people.
        hidden, intermediate, q_heads, kv_heads, head_dim: as usual, of the share.
        vocab: rows of the output head of the share.
        ranks: how many such shares the model has.
        activations: "bf16", "fp8-static" or "fp8-dynamic".
        weights: storage of the linear layers: "FP8" or "BF16".
        kv: storage of the KV cache: "FP8" or "BF16".
    """

    name: str
    hidden: int
    intermediate: int
    q_heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    activations: str
    weights: str = "FP8"
    kv: str = "BF16"
    ranks: int = 1


MODELS = (
    ModelShape("SmolLM2-135M", 576, 1536, 9, 3, 64, 49152, "bf16"),
    ModelShape("SmolLM2-135M", 576, 1536, 9, 3, 64, 49152, "fp8-dynamic"),
    ModelShape("Llama-3.1-8B", 4096, 14336, 32, 8, 128, 128256, "fp8-dynamic"),
    ModelShape("Llama-3.1-405B tp 8", 16384, 6656, 16, 1, 128, 16064, "fp8-static", kv="FP8", ranks=8),
)
"""Models with FP8 weights, in every activation mode."""

BF16_MODELS = (
    ModelShape("SmolLM2-135M", 576, 1536, 9, 3, 64, 49152, "bf16", weights="BF16"),
    ModelShape("Llama-3.1-8B", 4096, 14336, 32, 8, 128, 128256, "bf16", weights="BF16"),
)
"""Models for targets without FP8."""

STEPS = (Step(1, 1), Step(32, 32), Step(1024, 16))
"""One request decoding, a batch decoding, a prompt."""


def models_for(target: Target) -> tuple[ModelShape, ...]:
    """Returns the models that a target can run."""
    return MODELS if target.fp8 else BF16_MODELS


def kernel_requests(model: ModelShape, step: Step) -> Iterator[Request]:
    """Yields the kernels of a step and `history`, which loads a request between steps.

    `schedule` is missing: it follows `attention`.
    """
    heads: dict[str, Constant] = {
        "Q_HEADS": model.q_heads,
        "KV_HEADS": model.kv_heads,
        "HEAD_DIM": model.head_dim,
        "KV": model.kv,
    }
    normed, mixed, out = _modes(model, step)
    rows = Step(step.requests, step.requests)
    yield _request("embed", {"HIDDEN": model.hidden, "ROW_STRIDE": model.hidden}, step)
    yield _request("rope_table", {"HEAD_DIM": model.head_dim}, step)
    width = model.q_heads * model.head_dim
    for clear in (0, 1) if out["AMAX"] else (0,):
        yield _request("norm", _norm(model, normed, "TOKENS") | {"CLEAR": clear}, step)
    yield _request("norm", _norm(model, "NONE", "LOGITS") | {"CLEAR": 0}, rows)
    if out["AMAX"] and step.tokens > QUANTIZE_TOKENS:
        yield _request("quantize", {"K": width}, step)
        yield _request("quantize", {"K": model.intermediate}, step)
    qkv = (model.q_heads + 2 * model.kv_heads) * model.head_dim
    rope: dict[str, Constant] = {"EPILOGUE": "ROPE", "OUT": "BF16", "AMAX": 0}
    add: dict[str, Constant] = {"EPILOGUE": "ADD", "OUT": "FP32", "AMAX": 0}
    head: dict[str, Constant] = {"EPILOGUE": "STORE", "OUT": "FP32", "AMAX": 0, "ROWS": "LOGITS"}
    yield _linear(model.weights, qkv, model.hidden, normed, heads | rope, step)
    yield _request("attention", heads | out, step)
    yield _linear(model.weights, model.hidden, width, mixed, add, step)
    yield _linear(model.weights, 2 * model.intermediate, model.hidden, normed, {**out, "EPILOGUE": "SILU"}, step)
    yield _linear(model.weights, model.hidden, model.intermediate, mixed, add, step)
    yield _linear("BF16", model.vocab, model.hidden, "NONE", head, rows)
    if model.ranks > 1:
        yield from _collectives(model, normed, step, rows)
    for family in FAMILIES:
        if family.startswith("sample_"):
            yield _request(family, {"VOCAB": model.vocab * model.ranks}, rows)
    yield _request("history", {"VOCAB": model.vocab * model.ranks}, Step(1, 1))


def _collectives(model: ModelShape, scale: str, step: Step, rows: Step) -> Iterator[Request]:
    """Yields the launches in which ranks meet: sums with the norms behind them, and what is told of logits."""
    layout = comm_layout(model.ranks, model.hidden, max(s.tokens for s in STEPS), max(s.requests for s in STEPS))
    group: dict[str, Constant] = {"TP": layout.tp, "BLOCKS": layout.blocks}
    sums = {**group, "WIRE": wire_of(model.hidden, step.tokens), "MODE": "ADD", "NORM": 1, "CLEAR": 0}
    yield _request("all_reduce", sums | _norm(model, scale, "TOKENS"), step)
    yield _request("all_reduce", sums | _norm(model, "NONE", "LOGITS"), step)
    yield _request("all_gather", group | {"SHARE": model.vocab}, rows)
    yield _request("argmax", group | {"VOCAB": model.vocab * model.ranks, "SHARE": model.vocab}, rows)


def _modes(model: ModelShape, step: Step) -> tuple[str, str, dict[str, Constant]]:
    """Returns how inputs are scaled after a norm and after attention or SiLU, and how the latter two store them."""
    if model.activations == "bf16":
        return "NONE", "NONE", {"OUT": "BF16", "AMAX": 0}
    if model.activations == "fp8-static":
        return "TENSOR", "TENSOR", {"OUT": "FP8", "AMAX": 0}
    return "ROW", "AMAX" if step.tokens <= QUANTIZE_TOKENS else "ROW", {"OUT": "BF16", "AMAX": 1}


def _norm(model: ModelShape, scale: str, rows: str) -> dict[str, Constant]:
    return {"HIDDEN": model.hidden, "ROWS": rows, "OUT": "BF16" if scale == "NONE" else "FP8", "SCALE": scale}


def _linear(weight: str, n: int, k: int, scale: str, special: Mapping[str, Constant], step: Step) -> Request:
    storage = "BF16" if scale in {"NONE", "AMAX"} else "FP8"
    sizes: dict[str, Constant] = {"N": n, "K": k, "ROW_STRIDE": k, "ROWS": "TOKENS"}
    types: dict[str, Constant] = {"A": storage, "A_SCALE": scale, "WEIGHT": weight}
    return _request("linear", {**sizes, **types, **_NO_HEADS, **special}, step)


def _request(family: str, constants: Mapping[str, Constant], step: Step) -> Request:
    spec = FAMILIES[family]
    return Request(spec, tuple(spec.full(constants).items()), step)
