"""Finds out which FP8 format a checkpoint is in, and reads its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from paiton_aot.checkpoint.base import SourceTensor
from paiton_aot.checkpoint.fields import Fields, shown
from paiton_aot.checkpoint.quantization import block_fp8, compressed_tensors, fbgemm, fp8, modelopt, quark
from paiton_aot.checkpoint.quantization.description import Quantization
from paiton_aot.checkpoint.quantization.modules import Contents, unsupported
from paiton_artifacts.errors import CheckpointFormatError

_FORMATS: Mapping[str, Callable[[Fields, Contents], Quantization]] = {
    "compressed-tensors": compressed_tensors.parse,
    "fbgemm_fp8": fbgemm.parse,
    "modelopt": modelopt.parse,
    "quark": quark.parse,
}


def parse_quantization(
    config: Mapping[str, object],
    tensors: Mapping[str, SourceTensor],
    layers: int,
    what: str,
    modelopt_config: Mapping[str, object] | None = None,
) -> Quantization | None:
    """Returns how the checkpoint is quantised, after checking that its tensors are stored that way.

    Args:
        config: the content of config.json.
        tensors: all tensors of the checkpoint.
        layers: number of transformer layers.
        what: names config.json in errors.
        modelopt_config: the content of hf_quant_config.json, where there is one; config.json has precedence.

    Raises:
        UnsupportedQuantizationError: another format, or a variant of one that we do not read.
        CheckpointFormatError: tensors and configuration disagree on what is quantised.
        MissingTensorError: a quantised layer has no scale.
        TensorShapeError, TensorValueError: a scale has another shape than its format says, or is not positive.
    """
    fields = Fields(config, what)
    section, older = fields.section("quantization_config"), fields.section("compression_config")
    if section is not None and older is not None:
        raise fields.error("both quantization_config and compression_config")
    contents = Contents(tensors, layers, what)
    if section is not None:
        return _parser(section)(section, contents)
    if older is not None:
        return compressed_tensors.parse(older, contents)
    if modelopt_config is not None:
        name = what.removesuffix("config.json") + "hf_quant_config.json"
        return modelopt.parse(Fields(modelopt_config, name), Contents(tensors, layers, name))
    if contents.stored_as_fp8:
        raise CheckpointFormatError(
            f"tensor {min(contents.stored_as_fp8)}.weight is FP8, but {what} has no quantization_config",
            hint="restore config.json from where the checkpoint was exported",
        )
    return None


def _parser(section: Fields) -> Callable[[Fields, Contents], Quantization]:
    method = section.values.get("quant_method")
    if method == "fp8":
        return fp8.parse if section.values.get("weight_block_size") is None else block_fp8.parse
    if not isinstance(method, str) or method not in _FORMATS:
        raise unsupported(f"{section.what} has quant_method {shown(method)}")
    return _FORMATS[method]
