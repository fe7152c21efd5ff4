"""Reading scales: each is a positive, finite number and becomes f32, which holds all of their dtypes exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from paiton_aot.checkpoint.base import Checkpoint, SourceTensor
from paiton_aot.checkpoint.quantization.description import BLOCK, QuantizedModule, ScaleKind
from paiton_artifacts.errors import TensorShapeError, TensorValueError

_FLOATS = ("f32", "f16", "bf16")
_POWERS_OF_TWO = ("ue8m0", "u8")
"""2 ** (byte - 127), by its own dtype or by that which older files give it."""

_UE8M0_NAN = 0xFF
_UE8M0_BIAS = 127


def weight_scales(checkpoint: Checkpoint, module: str) -> NDArray[np.float32]:
    """Returns the scales of a quantised module of a checkpoint; see `read_scales`."""
    if checkpoint.quantization is None:
        raise ValueError(f"{module} is not quantised")
    return read_scales(checkpoint.tensor, module, checkpoint.quantization.modules[module])


def read_scales(find: Callable[[str], SourceTensor], module: str, quantized: QuantizedModule) -> NDArray[np.float32]:
    """Returns the scales of a module's weight `[N, K]`.

    Args:
        find: a tensor of the checkpoint by its name.
        module: its name.
        quantized: its description.

    Returns:
        f32 of shape [N] (per-tensor scales repeated), or [ceil(N / 128), ceil(K / 128)] where they are of blocks.

    Raises:
        MissingTensorError: the weight or its scales are absent.
        TensorShapeError: the scales' shape or dtype is not what their kind implies.
        TensorValueError: a scale is not a positive number.
    """
    weight, tensor = find(f"{module}.weight"), find(quantized.scale)
    rows, cols = weight.rows, weight.row_elements
    allowed: dict[ScaleKind, tuple[tuple[int, ...], ...]] = {
        ScaleKind.TENSOR: ((), (1,), (1, 1)),
        ScaleKind.ROW: ((rows, 1), (rows,)),
        ScaleKind.BLOCK: ((-(-rows // BLOCK), -(-cols // BLOCK)),),
    }
    dtypes = (*_FLOATS, *_POWERS_OF_TWO) if quantized.kind is ScaleKind.BLOCK else _FLOATS
    if tensor.shape not in allowed[quantized.kind] or tensor.dtype not in dtypes:
        raise TensorShapeError(
            f"scale {tensor.name} is {tensor.dtype} of shape {list(tensor.shape)}, expected one number or a shape of"
            f" {' or '.join(str(list(shape)) for shape in allowed[quantized.kind] if shape)} for a weight of"
            f" {rows} x {cols} with scales per {quantized.kind.value}",
            hint="configuration and weights belong to different exports; fetch the checkpoint again",
        )
    values = widened(tensor)
    if quantized.kind is ScaleKind.TENSOR:
        return np.full(rows, values.reshape(-1)[0], np.float32)
    return values if quantized.kind is ScaleKind.BLOCK else values.reshape(rows)


def widened(tensor: SourceTensor) -> NDArray[np.float32]:
    """Returns all scales of a tensor as f32.

    Raises:
        TensorValueError: one is not a positive number.
    """
    stored = tensor.read_rows(0, tensor.rows)
    if tensor.dtype in _POWERS_OF_TWO:
        exponents = stored.view(np.uint8)
        values = np.full(exponents.shape, np.nan, np.float32)
        powers = exponents.astype(np.int32) - _UE8M0_BIAS
        np.ldexp(np.float32(1), powers, out=values, where=exponents != _UE8M0_NAN)
    else:
        values = stored.astype(np.float32)
    good = (values > 0) & np.isfinite(values)
    if not good.all():
        value = float(values.reshape(-1)[int(np.argmin(good))])
        raise TensorValueError(
            f"scale {tensor.name} is {value}, expected a positive number", hint="quantise the model again"
        )
    return values
