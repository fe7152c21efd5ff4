"""The scales of weights as bundle tensors: a vector for each row's, a grid for those of blocks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from paiton_aot.checkpoint.base import Checkpoint
from paiton_aot.checkpoint.quantization.description import BLOCK, ScaleKind
from paiton_aot.weights import ShardRule, Source, WeightSpec, shard, valid_tp
from paiton_artifacts.errors import TensorParallelError, UnsupportedQuantizationError


def with_scales(checkpoint: Checkpoint, specs: Iterable[WeightSpec], tp: int) -> list[WeightSpec]:
    """Inserts each weight's scale companion right after it.

    Raises:
        UnsupportedQuantizationError: modules that are fused have scales of different kinds.
        TensorParallelError: `tp` ranks would divide a block of columns that shares a scale.
    """
    out = []
    for spec in specs:
        if not spec.scale:
            out.append(spec)
        elif _has_blocks(checkpoint, spec):
            block = (_rows_of_block(checkpoint, spec, tp), BLOCK)
            sources = tuple(replace(source, name="", block=block) for source in spec.sources)
            out += [replace(spec, scale_block=block), WeightSpec(spec.scale, sources, "f32")]
        else:
            sources = tuple(Source("", (source.rows,), _vector_rule(source.rule)) for source in spec.sources)
            out += [spec, WeightSpec(spec.scale, sources, "f32")]
    return out


def _vector_rule(rule: ShardRule) -> ShardRule:
    """A vector follows the rows of its weight, which a row-parallel weight does not divide."""
    return ShardRule.REPLICATED if rule is ShardRule.ROW else rule


def _has_blocks(checkpoint: Checkpoint, spec: WeightSpec) -> bool:
    modules = checkpoint.quantization.modules if checkpoint.quantization else {}
    described = (modules.get(source.name.removesuffix(".weight")) for source in spec.sources)
    blocks = {module is not None and module.kind is ScaleKind.BLOCK for module in described}
    if len(blocks) > 1:
        raise UnsupportedQuantizationError(
            f"checkpoint {checkpoint.name} has scales of blocks for only some of the modules of {spec.name}, which are"
            " fused here",
            hint="quantise all of them alike",
        )
    return blocks == {True}


def _rows_of_block(checkpoint: Checkpoint, spec: WeightSpec, tp: int) -> int:
    """Returns how many rows share a scale once modules are fused and divided.

    That is 128, or the largest divisor of it by which every part starts: no block crosses two scales of the checkpoint.
    """
    kv_heads = checkpoint.config.kv_heads
    if not _divides_columns(spec, tp):
        allowed = [n for n in valid_tp(checkpoint.config) if _divides_columns(spec, n)]
        raise TensorParallelError(
            f"--tp {tp} divides the {spec.sources[0].cols} columns of {spec.name} within a block of {BLOCK} that shares"
            " a scale",
            hint=f"use --tp with one of {', '.join(map(str, allowed))}",
        )
    starts, row = [BLOCK], 0
    for source in spec.sources:
        slices = [shard(source, rank, tp, kv_heads) for rank in range(tp)]
        starts += [row, *(part.row for part in slices)]
        row += slices[0].rows
    return math.gcd(*starts)


def _divides_columns(spec: WeightSpec, tp: int) -> bool:
    return all(
        source.rule is not ShardRule.ROW or tp == 1 or source.cols % (tp * BLOCK) == 0 for source in spec.sources
    )
