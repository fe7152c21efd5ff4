"""quantization_config of a Hugging Face checkpoint: the static FP8 format (`quant_method: fp8`), checked on open.

Per quantised linear layer: `weight` e4m3fn [N, K], `weight_scale` one number, and with static activations
`input_scale` one number. Written by AutoFP8 and by Quark's fp8 mode; vLLM reads it in
model_executor/layers/quantization/fp8.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from paiton_aot.checkpoint.base import Fp8Static, SourceTensor, find_kv_scales, read_scale
from paiton_aot.checkpoint.fields import Fields, shown
from paiton_artifacts.errors import CheckpointFormatError, UnsupportedQuantizationError

SUPPORTED = "none (bf16, f16, f32), and quant_method fp8 with per-tensor scales"
FP8 = "fp8_e4m3fn"
WEIGHT = ".weight"
LAYER_MODULES = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def parse_quantization(
    config: Mapping[str, object], tensors: Mapping[str, SourceTensor], layers: int, what: str
) -> Fp8Static | None:
    """Returns how the checkpoint is quantised, after checking that its tensors are stored that way.

    Args:
        config: the content of config.json.
        tensors: all tensors of the checkpoint.
        layers: number of transformer layers.
        what: names config.json in errors.

    Raises:
        UnsupportedQuantizationError: another method, or a variant of this one.
        CheckpointFormatError: tensors and configuration disagree on what is quantised.
        MissingTensorError: a quantised layer has no scale.
        TensorShapeError, TensorValueError: a scale is not one positive number.
    """
    section = Fields(config, what).section("quantization_config")
    # Older compressed-tensors checkpoints call it so.
    if section is None and Fields(config, what).section("compression_config"):
        raise _unsupported(f"{what} has quantisation compressed-tensors")
    stored = frozenset(
        name.removesuffix(WEIGHT) for name, tensor in tensors.items() if tensor.dtype == FP8 and name.endswith(WEIGHT)
    )
    if section is None:
        if stored:
            raise CheckpointFormatError(
                f"tensor {min(stored)}.weight is FP8, but {what} has no quantization_config",
                hint="restore config.json from where the checkpoint was exported",
            )
        return None
    static, ignored = _parse_section(section)
    linear = {f"model.layers.{layer}.{module}" for layer in range(layers) for module in LAYER_MODULES}
    _check_modules(stored, {module for module in linear if module + WEIGHT in tensors}, ignored, what)
    for module in sorted(stored):
        read_scale(tensors, f"{module}.weight_scale")
        if static:
            read_scale(tensors, f"{module}.input_scale")
    has_kv = any([find_kv_scales(tensors, layer) != (1.0, 1.0) for layer in range(layers)])  # noqa: C419  (check all)
    return Fp8Static(modules=stored, ignored_layers=ignored, static_activations=static, kv_scales=has_kv)


def _parse_section(section: Fields) -> tuple[bool, tuple[str, ...]]:
    """Returns whether activations have static scales, and which modules are left alone."""
    method = section.values.get("quant_method")
    if method != "fp8":
        raise _unsupported(f"{section.what} has quant_method {shown(method)}")
    if section.values.get("weight_block_size") is not None:
        raise _unsupported(f"{section.what} has weight_block_size {shown(section.values['weight_block_size'])}")
    if section.values.get("fmt", "e4m3") != "e4m3":
        raise _unsupported(f"{section.what} has fmt {shown(section.values['fmt'])}")
    scheme = section.values.get("activation_scheme", "dynamic")
    if scheme not in ("static", "dynamic"):
        raise _unsupported(f"{section.what} has activation_scheme {shown(scheme)}")
    kv_scheme = section.values.get("kv_cache_scheme")
    if kv_scheme not in (None, "static") and not _is_static_fp8(kv_scheme):
        raise _unsupported(f"{section.what} has kv_cache_scheme {shown(kv_scheme)}")
    ignored = {*section.strings("ignored_layers"), *section.strings("modules_to_not_convert")}
    return scheme == "static", tuple(sorted(ignored))


def _is_static_fp8(scheme: object) -> bool:
    """Whether a kv_cache_scheme in compressed-tensors' spelling means one FP8 scale per tensor."""
    expected = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False}
    return isinstance(scheme, dict) and all(scheme.get(key) == value for key, value in expected.items())


def _check_modules(stored: AbstractSet[str], present: AbstractSet[str], ignored: tuple[str, ...], what: str) -> None:
    """Checks that exactly those modules are FP8 that the configuration does not ignore (absent ones: see lowering)."""
    for module in sorted(stored | present):
        if (module in stored) == is_ignored(module, ignored):
            facts = "FP8, but {} lists" if module in stored else "not FP8, but {} does not list"
            raise CheckpointFormatError(
                f"tensor {module}.weight is {facts.format(what)} it in ignored_layers",
                hint="restore config.json from where the checkpoint was exported",
            )


def is_ignored(module: str, ignored: tuple[str, ...]) -> bool:
    """Returns whether a pattern equals the module's name or a run of its dotted components ("lm_head", "layers.0")."""
    return any(f".{pattern}." in f".{module}." for pattern in ignored)


def _unsupported(message: str) -> UnsupportedQuantizationError:
    return UnsupportedQuantizationError(message, hint=f"supported: {SUPPORTED}; build from one of those")
