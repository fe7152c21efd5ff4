"""Inverse frequencies of rotary position embedding, with the scalings that stretch a model's context.

Sources: Meta's reference code for llama3 scaling; Peng et al., "YaRN", 2023, for yarn; Ding et al., "LongRoPE", 2024,
for longrope; all as transformers computes them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from paiton_aot.checkpoint.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    RopeScaling,
    YarnScaling,
    attention_factor,
)
from paiton_artifacts.errors import CheckpointFormatError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None, *, rotary_dim: int = 0, context: int = 0
) -> list[float]:
    """Returns the head_dim / 2 rotary inverse frequencies (f32 values, radians per position), scaled.

    The powers are taken in f32, as transformers takes them.

    Args:
        head_dim: elements of a head.
        theta: the base.
        scaling: what stretches the model's context.
        rotary_dim: elements that are rotated, 0 for all; the frequencies of the others come last and are 0.
        context: tokens that the bundle allows, by which longrope chooses its factors.

    Raises:
        CheckpointFormatError: longrope has not one factor for each frequency.
    """
    import numpy as np  # noqa: PLC0415  (the command line must start without it)

    rotated = rotary_dim or head_dim
    exponents = np.arange(0, rotated, 2, dtype=np.int64).astype(np.float32) / np.float32(rotated)
    powers = np.power(np.float32(theta), exponents)
    if isinstance(scaling, LongRopeScaling):
        powers *= _checked_factors(scaling, context, len(powers))
    base = [float(value) for value in np.float32(1.0) / powers]
    if isinstance(scaling, Llama3Scaling):
        base = [_llama3(value, scaling) for value in base]
    elif isinstance(scaling, LinearScaling):
        base = [value / scaling.factor for value in base]
    elif isinstance(scaling, YarnScaling):
        base = [value * kept for value, kept in zip(base, _yarn(rotated, theta, scaling), strict=True)]
    return [float(np.float32(value)) for value in base] + [0.0] * ((head_dim - rotated) // 2)


def score_factor(scaling: RopeScaling | None) -> float:
    """Returns what scaled RoPE multiplies attention's scores by: q and k each get the attention factor."""
    return attention_factor(scaling) ** 2


def scaling_name(scaling: RopeScaling | None) -> str:
    """Returns what the manifest calls a scaling."""
    names = {Llama3Scaling: "llama3", LinearScaling: "linear", YarnScaling: "yarn", LongRopeScaling: "longrope"}
    return names[type(scaling)] if scaling else "none"


def _checked_factors(scaling: LongRopeScaling, context: int, count: int) -> NDArray[np.float32]:
    """Returns longrope's factors for a context, one for each of `count` frequencies."""
    import numpy as np  # noqa: PLC0415  (as above)

    for name, factors in (("short_factor", scaling.short_factors), ("long_factor", scaling.long_factors)):
        if len(factors) != count:
            raise CheckpointFormatError(
                f"longrope has {len(factors)} numbers as {name}, for {count} frequencies",
                hint="configuration and model belong to different releases: fetch the checkpoint again",
            )
    return np.asarray(scaling.factors(context), np.float32)


def _llama3(frequency: float, scaling: Llama3Scaling) -> float:
    """Scales one inverse frequency: long wavelengths by 1/factor, short ones not, a linear blend between."""
    wavelength = 2 * math.pi / frequency
    context = scaling.original_max_position
    if wavelength < context / scaling.high_freq_factor:
        return frequency
    if wavelength > context / scaling.low_freq_factor:
        return frequency / scaling.factor
    smooth = (context / wavelength - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def _yarn(head_dim: int, theta: float, scaling: YarnScaling) -> list[float]:
    """Returns what each of head_dim / 2 frequencies is multiplied by: 1 below a ramp of dimensions, 1/factor above."""

    def dimension(turns: float) -> float:
        """The dimension that turns so often over the original context."""
        return head_dim * math.log(scaling.original_max_position / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    width = high - low or 0.001
    ramp = [min(1.0, max(0.0, (index - low) / width)) for index in range(head_dim // 2)]
    return [(1 - share) + share / scaling.factor for share in ramp]
