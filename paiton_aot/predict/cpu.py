"""Seconds of a step on the cpu target, from what its plan does and what each kind of work costs on one machine.

A step's plan is summed up in a few amounts (seconds of reading weights, multiply-adds, launches), and its time is their
sum, each times a rate. Rates are fitted on measured steps, by least squares of relative errors without negative rates;
they hold for one machine, instruction-set level and number of threads. Steps of other sizes and models follow from the
same rates: `python -m benchmarks predict` says how well.

How fast weights are read depends on how many bytes a step goes through: a step finds again in the caches what the step
before left there. So their reading is not counted in bytes but in the seconds that the machine takes to plainly read
as many bytes again and again, which is measured by itself (`Reading`).
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
    "decode: seconds of reading weights",
    "decode: weights converted",
    "decode: multiply-adds",
    "prefill: weights converted",
    "prefill: multiply-adds",
    "attention of one token: multiply-adds",
    "attention of more: multiply-adds",
)
"""What a step is summed up in; decode and prefill are the two forms of linear layers."""

_BYTES = "bytes of weights"
_DECODE_BYTES = "decode: bytes of weights"
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


@dataclass(frozen=True, slots=True)
class Reading:
    """How fast one machine reads the same bytes again and again.

    Attributes:
        sizes: bytes, ascending.
        seconds: that one pass over so many bytes takes.
    """

    sizes: Sequence[float]
    seconds: Sequence[float]

    def seconds_of(self, size: float) -> float:
        """Returns the seconds of a pass over `size` bytes: seconds a byte lie on a line between measured sizes."""
        rates = [seconds / own for own, seconds in zip(self.sizes, self.seconds, strict=True)]
        return size * float(np.interp(size, self.sizes, rates))


def amounts(plan: Plan, variants: Mapping[str, Variant], batch: Batch, reading: Reading) -> NDArray[np.float64]:
    """Returns what a step does, in the order of `AMOUNTS`.

    Args:
        plan: that the step runs, of family "forward".
        variants: the kernels of the cpu target, by symbol.
        batch: what the step holds.
        reading: of the machine.
    """
    total = dict.fromkeys((*AMOUNTS, _BYTES, _DECODE_BYTES), 0.0)
    for segment in plan.segments:
        for launch in segment.launches:
            for name, amount in _of_launch(variants[launch.symbol], batch).items():
                total[name] += segment.repeat * amount
            total["launches"] += segment.repeat
    share = total[_DECODE_BYTES] / total[_BYTES] if total[_BYTES] else 0.0
    total["decode: seconds of reading weights"] = share * reading.seconds_of(total[_BYTES])
    return np.array([total[name] for name in AMOUNTS])


def _of_launch(variant: Variant, batch: Batch) -> dict[str, float]:
    macros = variant.macros
    rows = batch.requests if macros.get("GATHER") else batch.rows
    if variant.spec.family == "attention":
        name = "attention of one token" if batch.tokens == 1 else "attention of more"
        products = 2.0 * int(macros["Q_HEADS"]) * int(macros["HEAD_DIM"]) * batch.visible
        return {f"{name}: multiply-adds": products}
    if variant.spec.family == "experts":
        return _of_experts(macros, rows)
    return _of_matrix(macros, 1, rows, panels=macros["FORM"] == "PREFILL") if variant.spec.family == "linear" else {}


def _of_experts(macros: Mapping[str, Value], tokens: int) -> dict[str, float]:
    """Returns what the experts that a step is expected to use make of its tokens."""
    experts, top_k = int(macros["EXPERTS"]), int(macros["TOP_K"])
    used, rows = expected_experts(experts, top_k, tokens), tokens * top_k
    return _of_matrix(macros, used, rows, panels=macros["EPILOGUE"] not in SUMS and rows > DIRECT_ROWS * used)


def _of_matrix(macros: Mapping[str, Value], matrices: float, rows: int, *, panels: bool) -> dict[str, float]:
    n, k = int(macros["N"]), int(macros["K"])
    form, size = "prefill" if panels else "decode", matrices * n * k * WEIGHT_BYTES[str(macros["WEIGHT"])]
    return {
        f"{form}: weights converted": matrices * n * k,
        f"{form}: multiply-adds": float(rows * n * k),
        _BYTES: size,
        _DECODE_BYTES: 0.0 if panels else size,
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
