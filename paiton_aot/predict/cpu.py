"""Seconds of a step on the cpu target, from what its plan does and what each kind of work costs on one machine.

A step's plan is summed up in a few amounts (bytes of weights, multiply-adds, launches), and its time is their sum, each
times a rate. Rates are fitted on measured steps, by least squares of relative errors without negative rates; they hold
for one machine, instruction-set level and number of threads. Steps of other sizes and models follow from the same
rates: `python -m benchmarks predict` says how well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paiton_artifacts.plan import Plan
from paiton_kernels.experts import DIRECT_ROWS, SUMS, expected_experts
from paiton_kernels.linear import WEIGHT_BYTES
from paiton_kernels.spec import Value, Variant

AMOUNTS = (
    "launches",
    "decode: bytes of FP8 or INT8 weights",
    "decode: bytes of bf16 weights",
    "decode: multiply-adds",
    "decode: outputs",
    "prefill: weights converted",
    "prefill: multiply-adds",
    "attention: multiply-adds",
    "rows: elements",
)
"""What a step is summed up in; all but the first and the last are of linear layers and of attention."""

_ROUNDS = 2000


@dataclass(frozen=True, slots=True)
class Batch:
    """A step of equal requests.

    Attributes:
        requests: in it.
        tokens: of each, new in this step.
        context: positions of each before this step.
    """

    requests: int
    tokens: int
    context: int

    @property
    def rows(self) -> int:
        """Tokens of the step."""
        return self.requests * self.tokens

    @property
    def visible(self) -> int:
        """Pairs of a token and a position that it attends to."""
        return self.requests * sum(self.context + index + 1 for index in range(self.tokens))


def amounts(plan: Plan, variants: Mapping[str, Variant], batch: Batch) -> NDArray[np.float64]:
    """Returns what a step does, in the order of `AMOUNTS`.

    Args:
        plan: that the step runs, of family "forward".
        variants: the kernels of the cpu target, by symbol.
        batch: what the step holds.
    """
    total = dict.fromkeys(AMOUNTS, 0.0)
    for segment in plan.segments:
        for launch in segment.launches:
            for name, amount in _of_launch(variants[launch.symbol], batch).items():
                total[name] += segment.repeat * amount
            total["launches"] += segment.repeat
    return np.array([total[name] for name in AMOUNTS])


def _of_launch(variant: Variant, batch: Batch) -> dict[str, float]:
    macros = variant.macros
    rows = batch.requests if macros.get("GATHER") else batch.rows
    if variant.spec.family == "attention":
        return {"attention: multiply-adds": 2.0 * int(macros["Q_HEADS"]) * int(macros["HEAD_DIM"]) * batch.visible}
    if variant.spec.family == "pack":
        return {"rows: elements": float(rows * int(macros["K"]))}
    if variant.spec.family == "experts":
        return _of_experts(macros, rows)
    return _of_matrix(macros, 1, rows, panels=macros["FORM"] == "PREFILL") if variant.spec.family == "linear" else {}


def _of_experts(macros: Mapping[str, Value], tokens: int) -> dict[str, float]:
    """Returns what the experts that a step is expected to use make of its tokens."""
    experts, top_k = int(macros["EXPERTS"]), int(macros["TOP_K"])
    used, rows = expected_experts(experts, top_k, tokens), tokens * top_k
    return _of_matrix(macros, used, rows, panels=macros["EPILOGUE"] not in SUMS and rows > DIRECT_ROWS * used)


def _of_matrix(macros: Mapping[str, Value], matrices: float, rows: int, *, panels: bool) -> dict[str, float]:
    n, k, weight = int(macros["N"]), int(macros["K"]), str(macros["WEIGHT"])
    if panels:
        return {
            "prefill: weights converted": matrices * n * k,
            "prefill: multiply-adds": float(rows * n * k),
            "rows: elements": float(rows * n),
        }
    name = "decode: bytes of bf16 weights" if weight == "BF16" else "decode: bytes of FP8 or INT8 weights"
    return {
        name: matrices * n * k * WEIGHT_BYTES[weight],
        "decode: multiply-adds": float(rows * n * k),
        "decode: outputs": float(rows * n),  # each a sum over a vector's lanes, however short its row
    }


def fit(steps: Sequence[NDArray[np.float64]], seconds: Sequence[float]) -> NDArray[np.float64]:
    """Returns the rate of each amount, in seconds, that fits measured steps best; none is negative.

    Args:
        steps: amounts of each.
        seconds: that each took.
    """
    scale = np.maximum(np.max(np.stack(steps), axis=0), 1e-30)
    matrix = np.stack(steps) / scale / np.asarray(seconds)[:, None]
    target = np.ones(len(seconds))
    rates = np.zeros(matrix.shape[1])
    norms = np.maximum((matrix**2).sum(axis=0), 1e-30)
    for _ in range(_ROUNDS):  # coordinate descent: each rate in turn takes its best value that is not negative
        for index in range(len(rates)):
            residual = target - matrix @ rates
            rates[index] = max(0.0, rates[index] + float(matrix[:, index] @ residual) / norms[index])
    fitted: NDArray[np.float64] = rates / scale
    return fitted


def predict(step: NDArray[np.float64], rates: NDArray[np.float64]) -> float:
    """Returns the predicted seconds of a step with these amounts."""
    return float(step @ rates)
