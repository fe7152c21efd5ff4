"""compressed-tensors (llm-compressor): groups of modules, each with its own scheme.

Per quantised layer: `weight` e4m3fn [N, K], `weight_scale` [1] (strategy `tensor`), [N, 1] (`channel`) or
[ceil(N / 128), ceil(K / 128)] (`block`), in the model's dtype, and `input_scale` [1] where activations are static;
`self_attn.k_scale` and `self_attn.v_scale` with a `kv_cache_scheme`. Older files call the section
`compression_config`. Reader: the compressed-tensors package (quantization/quant_config.py, utils/match.py for targets).
"""

from __future__ import annotations

from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.quantization.description import BLOCK, Quantization, ScaleKind
from paiton_aot.checkpoint.quantization.fp8 import is_static_fp8
from paiton_aot.checkpoint.quantization.modules import Contents, Scheme, describe, unsupported
from paiton_aot.checkpoint.quantization.patterns import matches_target

FORMATS = (None, "float-quantized", "naive-quantized")
_KINDS = {"tensor": ScaleKind.TENSOR, "channel": ScaleKind.ROW, "block": ScaleKind.BLOCK}
_LINEAR = ("Linear",)


def parse(section: Fields, contents: Contents) -> Quantization:
    """Returns the description of the checkpoint.

    Raises:
        UnsupportedQuantizationError: another number format, strategy or transformation.
        CheckpointError: configuration and tensors disagree; see `modules.describe`.
    """
    _check_format(section)
    kv_scheme = section.values.get("kv_cache_scheme")
    if kv_scheme is not None and not is_static_fp8(kv_scheme):
        raise unsupported(f"{section.what} has kv_cache_scheme {shown(kv_scheme)}")
    for name, harmless in (("sparsity_config", {"format": "dense"}), ("transform_config", {"config_groups": {}})):
        feature = section.section(name)
        if feature and any(feature.values.get(key, value) != value for key, value in harmless.items()):
            raise unsupported(f"{section.what} has {name} {shown(feature.values)}")
    groups = section.section("config_groups")
    if groups is None or not groups.values:
        raise section.error("no config_groups")
    schemes = [_group(group) for name in groups.values if (group := groups.section(name)) is not None]
    ignored = section.strings("ignore")

    def scheme(module: str) -> Scheme | None:
        if matches_target(module, ignored, _LINEAR):
            return None
        # What names the module outranks what names its class, whatever the order of the groups.
        for targets, found in schemes:
            if matches_target(module, [target for target in targets if target not in _LINEAR]):
                return found
        return next((found for targets, found in schemes if matches_target(module, targets, _LINEAR)), None)

    return describe(contents, "compressed-tensors", scheme, "ignore")


def _check_format(section: Fields) -> None:
    found = section.values.get("format")
    if found not in FORMATS:
        raise unsupported(f"{section.what} has format {shown(found)}")


def _group(group: Fields) -> tuple[list[str], Scheme]:
    """Returns the targets of a group, and how it stores them."""
    _check_format(group)
    weights, inputs = group.section("weights"), group.section("input_activations")
    if weights is None:
        raise unsupported(f"{group.what} has no weights")
    strategy = _check_float(weights)
    if strategy not in _KINDS or weights.flag("dynamic"):
        raise unsupported(f"{weights.what} has strategy {shown(strategy)}")
    _check_block(weights, strategy)
    if group.values.get("output_activations") is not None:
        raise unsupported(f"{group.what} has output_activations {shown(group.values['output_activations'])}")
    targets = group.strings("targets")
    if inputs is None:
        return targets, Scheme(_KINDS[strategy])
    input_strategy = _check_float(inputs)
    static = not inputs.flag("dynamic")
    if input_strategy not in (("tensor",) if static else ("tensor", "token", "group")):
        raise unsupported(f"{inputs.what} has strategy {shown(input_strategy)}")
    if static and strategy == "block":
        raise unsupported(f"{inputs.what} is static, with block scales of weights")
    return targets, Scheme(_KINDS[strategy], static)


def _check_float(section: Fields) -> str:
    """Checks that values are symmetric 8-bit floats; returns the strategy of their scales."""
    values = section.values
    if (values.get("num_bits"), values.get("type")) != (8, "float") or values.get("symmetric", True) is not True:
        names = {name: values.get(name) for name in ("num_bits", "type", "symmetric")}
        raise unsupported(f"{section.what} has {shown(names)}")
    return str(values.get("strategy"))


def _check_block(weights: Fields, strategy: str) -> None:
    size = weights.values.get("block_structure")
    if strategy == "block" and size not in ([BLOCK, BLOCK], f"{BLOCK}x{BLOCK}"):
        raise unsupported(f"{weights.what} has block_structure {shown(size)}, not [{BLOCK}, {BLOCK}]")
