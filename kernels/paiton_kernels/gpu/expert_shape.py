"""Names, limits, costs and configurations of ``expert_linear``: those of ``linear`` for the rows that an expert gets.

For tuning, a step's launch is that of one layer whose weights are those of all experts that the step is expected to
choose, over as many rows as each then has: as many tiles, bytes and operations.
"""

from __future__ import annotations

from collections.abc import Mapping

import triton

from paiton_kernels.experts import expected_experts
from paiton_kernels.gpu import linear_shape, linear_space
from paiton_kernels.gpu.devices import Profile, Target, target_named
from paiton_kernels.gpu.linear_shape import ELEMENT_BYTES
from paiton_kernels.gpu.routes import check_routes
from paiton_kernels.gpu.spec import Config, Constant, Grid, Step, Work

_AS_LINEAR: dict[str, Constant] = {
    **linear_shape.OPTIONAL,
    "ROWS": "TOKENS",
    "Q_HEADS": 0,
    "KV_HEADS": 0,
    "HEAD_DIM": 0,
    "KV": "BF16",
}
_OWN = ("EXPERTS", "TOP_K", "INPUT")
_EPILOGUES = ("STORE", "SILU", "GELU")


def _as_linear(values: Mapping[str, Constant]) -> dict[str, Constant]:
    """Returns the constants of ``linear`` with one expert's weights."""
    return {**_AS_LINEAR, **{name: value for name, value in values.items() if name not in _OWN}}


def _combined(values: Mapping[str, Constant], step: Step) -> tuple[dict[str, Constant], Step]:
    """Returns constants and step of the launch of ``linear`` that stands for one over a step's experts."""
    experts, top_k = int(values["EXPERTS"]), int(values["TOP_K"])
    chosen = max(top_k, round(expected_experts(experts, top_k, step.tokens)))
    rows = -(-step.tokens * top_k // chosen)
    return {**_as_linear(values), "N": chosen * int(values["N"])}, Step(rows, rows)


def name(values: Mapping[str, Constant]) -> str:
    """Returns the readable part of a symbol: different constants give different names."""
    which = str(values["INPUT"]).lower()
    return f"e{values['EXPERTS']}_top{values['TOP_K']}_{which}_{linear_shape.name(_as_linear(values))}"


@triton.constexpr_function
def row_limit(k, storage):
    """Returns how many rows of K activations 32-bit offsets reach, in bytes."""
    return ((1 << 31) - 1) // (k * ELEMENT_BYTES[storage])


def check(values: Mapping[str, Constant], target: Target) -> str:
    """Returns why ``expert_linear`` cannot do these constants, or ""."""
    n, block_rows = int(values["N"]), int(values["SCALE_ROWS"])
    if values["EPILOGUE"] not in _EPILOGUES or values["INPUT"] not in ("TOKENS", "ENTRIES"):
        return f"EPILOGUE={values['EPILOGUE']} with INPUT={values['INPUT']}"
    if block_rows and n % block_rows:
        return f"N is {n}, not a multiple of SCALE_ROWS={block_rows}: experts share a scale"
    return check_routes(values) or linear_shape.check(_as_linear(values), target)


def space(constants: Mapping[str, Constant], step: Step, profile: Profile) -> tuple[Config, ...]:
    """Returns configurations for a bucket, most promising first."""
    combined, rows = _combined(constants, step)
    if constants["EPILOGUE"] == "STORE" and target_named(profile.target).backend == "cuda":
        combined["EPILOGUE"] = "ADD"  # addresses of rows that lie apart take as many registers as what is added to
    return linear_space.space(combined, rows, profile)


def tiles(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the most tiles that a step's entries can be cut into, whatever experts its tokens choose.

    With n entries for c experts there are at most c + (n - c) // BLOCK_M of them, most where c is largest.
    """
    entries, height = step.tokens * int(values["TOP_K"]), int(values["BLOCK_M"])
    experts = min(entries, int(values["EXPERTS"]))
    most = experts if step.tokens <= height else experts + (entries - experts) // height
    return most * -(-int(values["N"]) // int(values["BLOCK_N"]))


def grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    """Returns the blocks launched: one for each tile and part of K; those beyond the step's end at once."""
    return tiles(values, step) * int(values["SPLIT_K"]), 1, 1


def workspace(values: Mapping[str, Constant], step: Step, _profile: Profile) -> dict[str, int]:
    """Returns the scratch that partial sums take, as ``linear``'s."""
    return linear_shape.partial_sums(tiles(values, step), values)


def work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    """Returns what a step with as many tokens as its bucket is expected to move and compute: every operand once."""
    combined, average = _combined(values, step)
    found = linear_shape.work(combined, average, profile)
    read = step.tokens * (1 if values["INPUT"] == "TOKENS" else int(values["TOP_K"])) - average.tokens
    further = max(0, read) * int(values["K"]) * ELEMENT_BYTES[str(values["A"])]
    return Work(
        bytes=found.bytes + further,
        fp8_operations=found.fp8_operations,
        bf16_operations=found.bf16_operations,
        blocks=grid(values, step, profile)[0],
    )
