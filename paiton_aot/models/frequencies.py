"""Inverse frequencies of rotary position embedding, with the scalings that stretch a model's context.

Sources: Meta's reference code for llama3 scaling; Peng et al., "YaRN", 2023, for yarn; both as transformers computes
them.
"""

from __future__ import annotations

import math

from paiton_aot.checkpoint.rope import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling


def inverse_frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> list[float]:
    """Returns the head_dim / 2 rotary inverse frequencies (f32 values, radians per position), scaled.

    The powers are taken in f32, as transformers takes them.
    """
    import numpy as np  # noqa: PLC0415  (the command line must start without it)

    exponents = np.arange(0, head_dim, 2, dtype=np.int64).astype(np.float32) / np.float32(head_dim)
    base = [float(value) for value in np.float32(1.0) / np.power(np.float32(theta), exponents)]
    if isinstance(scaling, Llama3Scaling):
        base = [_llama3(value, scaling) for value in base]
    elif isinstance(scaling, LinearScaling):
        base = [value / scaling.factor for value in base]
    elif isinstance(scaling, YarnScaling):
        base = [value * kept for value, kept in zip(base, _yarn(head_dim, theta, scaling), strict=True)]
    return [float(np.float32(value)) for value in base]


def score_factor(scaling: RopeScaling | None) -> float:
    """Returns what scaled RoPE multiplies attention's scores by: q and k each get yarn's attention factor."""
    return scaling.attention_factor**2 if isinstance(scaling, YarnScaling) else 1.0


def scaling_name(scaling: RopeScaling | None) -> str:
    """Returns what the manifest calls a scaling."""
    names = {Llama3Scaling: "llama3", LinearScaling: "linear", YarnScaling: "yarn"}
    return names[type(scaling)] if scaling else "none"


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
