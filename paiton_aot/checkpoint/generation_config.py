"""generation_config.json: how the model's makers advise to draw tokens."""

from __future__ import annotations

from collections.abc import Mapping

from paiton_aot.checkpoint.fields import MAX_INT, shown
from paiton_artifacts.errors import CheckpointFormatError
from paiton_artifacts.schema import SamplingDefaults

_BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0.0, 1e4),
    "top_p": (1e-6, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-6, 1e4),
}
"""What each number must lie within."""


def sampling_defaults(generation: Mapping[str, object], what: str) -> SamplingDefaults:
    """Returns the parameters that vLLM takes from this file, too, as its defaults.

    Args:
        generation: the content of generation_config.json; empty where there is none.
        what: names it in errors.

    Raises:
        CheckpointFormatError: a number is no number, or without a meaning.
    """
    values = {name: _number(generation, name, what) for name in _BOUNDS}
    top_k = generation.get("top_k")
    if top_k is not None and not (type(top_k) is int and -1 <= top_k <= MAX_INT):
        raise _wrong(what, "top_k", top_k, "a count")
    return SamplingDefaults(
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=None if type(top_k) is not int else max(0, top_k),
        min_p=values["min_p"],
        repetition_penalty=values["repetition_penalty"],
    )


def _number(generation: Mapping[str, object], name: str, what: str) -> float | None:
    value = generation.get(name)
    if value is None:
        return None
    low, high = _BOUNDS[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _wrong(what, name, value, f"a number within {low:g} .. {high:g}")
    return float(value)


def _wrong(what: str, name: str, value: object, expected: str) -> CheckpointFormatError:
    return CheckpointFormatError(
        f"{what} has {name} {shown(value)}, expected {expected}", hint="correct the field or remove it"
    )
