"""Names, limits and costs of ``linear``, from its constants."""

from __future__ import annotations

from collections.abc import Mapping

from paiton_kernels.gpu.devices import Profile, Target
from paiton_kernels.gpu.spec import Constant, Grid, Step, Work, spelled

ELEMENT_BYTES = {"FP8": 1, "INT8": 1, "BF16": 2, "FP32": 4}

LOAD_BYTES = 16
"""Widest load of a lane: rows start at multiples of it."""

_MOST_ROWS = 256
"""Rows of weights in the largest tile."""

SCALE_COLUMNS = 128
"""Columns of weights that share a scale with SCALE_ROWS > 0, and columns of activations with A_SCALE=GROUP."""

OPTIONAL: dict[str, Constant] = {"SCALE_ROWS": 0, "BIAS": 0, "SOFTCAP": 0.0, "HEAD_NORM": 0, "NORM_OFFSET": 0.0}
"""Constants that may be left out, with what they then are: none of that."""

_INPUTS = {("BF16", "NONE"), ("BF16", "AMAX"), ("FP8", "TENSOR"), ("FP8", "ROW"), ("BF16", "GROUP"), ("FP32", "GROUP")}
_OUTPUTS = {("STORE", "FP32"), ("ADD", "FP32"), ("SILU", "BF16"), ("SILU", "FP8"), ("ROPE", "BF16")}
_OUTPUTS |= {("GELU", out) for out in ("BF16", "FP8")}
_GATED = ("SILU", "GELU")


def name(values: Mapping[str, Constant]) -> str:
    """Returns the readable part of a symbol: different constants give different names."""
    weight, n, k, stride = str(values["WEIGHT"]).lower(), values["N"], values["K"], values["ROW_STRIDE"]
    scale, epilogue = str(values["A_SCALE"]).lower(), str(values["EPILOGUE"]).lower()
    block = f"block{values['SCALE_ROWS']}" if values["SCALE_ROWS"] else ""
    parts = [weight + block, f"n{n}", f"k{k}"]
    if stride != k:
        parts.append(f"s{stride}")
    parts.append(str(values["A"]).lower() + ("" if scale == "none" else scale))
    parts.append(epilogue)
    if epilogue == "rope":
        parts += [f"q{values['Q_HEADS']}", f"kv{values['KV_HEADS']}", f"d{values['HEAD_DIM']}"]
        parts += ["kvfp8"] if values["KV"] == "FP8" else []
    if values["HEAD_NORM"]:
        parts.append("headnorm" + (spelled(values["NORM_OFFSET"]) if values["NORM_OFFSET"] else ""))
    if values["BIAS"]:
        parts.append("bias")
    if values["SOFTCAP"]:
        parts.append(f"cap{spelled(values['SOFTCAP'])}")
    if values["EPILOGUE"] in _GATED:
        parts.append(f"out{values['OUT']}".lower())
    if values["AMAX"]:
        parts.append("withamax")
    if values["ROWS"] == "LOGITS":
        parts.append("logits")
    return "_".join(parts)


def check(values: Mapping[str, Constant], _target: Target) -> str:
    """Returns why ``linear`` cannot do these constants, or ""."""
    weight, stride = str(values["WEIGHT"]), int(values["ROW_STRIDE"])
    n, k, scale = int(values["N"]), int(values["K"]), str(values["A_SCALE"])
    if k % LOAD_BYTES:
        return f"K is {k}, not a multiple of {LOAD_BYTES}"
    if stride < k or stride * ELEMENT_BYTES[weight] % LOAD_BYTES:
        return f"ROW_STRIDE is {stride} {weight} elements, not at least K={k} and a multiple of {LOAD_BYTES} bytes"
    apart = n // 2 if values["EPILOGUE"] in _GATED else 0
    if (apart + _MOST_ROWS) * stride >= 1 << 31:
        return f"ROW_STRIDE is {stride} elements: a tile's rows are further apart than 32-bit offsets reach"
    if (values["A"], scale) not in _INPUTS:
        return f"A={values['A']} with A_SCALE={scale}"
    if scale != "NONE" and weight != "FP8":
        return f"A_SCALE={scale} with WEIGHT={weight}: the matrix instruction takes FP8 on both sides or on neither"
    return _check_blocks(values, k) or _check_epilogue(values, n)


def _check_blocks(values: Mapping[str, Constant], k: int) -> str:
    block_rows, scale, weight = values["SCALE_ROWS"], values["A_SCALE"], values["WEIGHT"]
    depth, split = int(values["BLOCK_K"]), int(values["SPLIT_K"])
    if block_rows and (weight != "FP8" or scale not in ("NONE", "GROUP") or SCALE_COLUMNS % depth):
        return f"SCALE_ROWS={block_rows} with WEIGHT={weight}, A_SCALE={scale} and BLOCK_K={depth}"
    if scale == "GROUP" and (not block_rows or depth != SCALE_COLUMNS):
        return f"A_SCALE=GROUP with SCALE_ROWS={block_rows} and BLOCK_K={depth}, not {SCALE_COLUMNS}"
    if block_rows and has_empty_part(k // depth, -(-k // depth), split):
        return f"SCALE_ROWS={block_rows} with SPLIT_K={split}: the last part of K={k} has no whole pass"
    return ""


def _check_epilogue(values: Mapping[str, Constant], n: int) -> str:
    epilogue, out = str(values["EPILOGUE"]), str(values["OUT"])
    if (epilogue, out) not in _OUTPUTS:
        return f"EPILOGUE={epilogue} with OUT={out}"
    if values["AMAX"] and (epilogue not in _GATED or out != "BF16"):
        return f"AMAX=1 with EPILOGUE={epilogue} and OUT={out}: only gates with OUT=BF16 keep a largest magnitude"
    if values["SOFTCAP"] and epilogue != "STORE":
        return f"SOFTCAP={values['SOFTCAP']} with EPILOGUE={epilogue}"
    heads = int(values["Q_HEADS"]), int(values["KV_HEADS"]), int(values["HEAD_DIM"])
    if epilogue != "ROPE":
        if any(heads) or values["KV"] != "BF16" or values["HEAD_NORM"]:
            return f"heads or KV given with EPILOGUE={epilogue}"
        if epilogue in _GATED and n % 2:
            return f"N is {n} with {epilogue}, not even"
    else:
        q_heads, kv_heads, head_dim = heads
        if head_dim < 32 or head_dim % 32:
            return f"HEAD_DIM is {head_dim}, not a multiple of 32"
        if values["HEAD_NORM"] and (head_dim & (head_dim - 1) or head_dim > int(values["BLOCK_N"])):
            return f"HEAD_DIM is {head_dim} with norms of heads, not a power of two up to BLOCK_N={values['BLOCK_N']}"
        if n != (q_heads + 2 * kv_heads) * head_dim:
            return f"N is {n}, not ({q_heads} + 2*{kv_heads}) heads of {head_dim}"
    return ""


def has_empty_part(whole: int, passes: int, split: int) -> bool:
    """Returns whether the last part of K has none of the `whole` passes that are in the loop, `passes` with the tail.

    Behind a loop that may be empty Triton's pipeline reads shared memory at addresses that were never computed, to drop
    the result. The compiler removes that where passes only add to the accumulator, not where scales are in between.
    """
    return split > 1 and (split - 1) * -(-passes // split) >= whole


def rows(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the rows of activations that a bucket has."""
    return step.requests if values["ROWS"] == "LOGITS" else step.tokens


def tiles(values: Mapping[str, Constant], step: Step) -> int:
    """Returns the number of output tiles."""
    return -(-rows(values, step) // int(values["BLOCK_M"])) * -(-int(values["N"]) // int(values["BLOCK_N"]))


def grid(values: Mapping[str, Constant], step: Step, _profile: Profile) -> Grid:
    """Returns the blocks launched: one for each tile and part of K."""
    return tiles(values, step) * int(values["SPLIT_K"]), 1, 1


def workspace(values: Mapping[str, Constant], step: Step, _profile: Profile) -> dict[str, int]:
    """Returns the scratch that partial sums take: f32[tiles][SPLIT_K][BLOCK_M][BLOCK_N], and a semaphore a tile."""
    return partial_sums(tiles(values, step), values)


def partial_sums(count: int, values: Mapping[str, Constant]) -> dict[str, int]:
    """Returns the scratch of `count` tiles, nothing where K is not split."""
    split = int(values["SPLIT_K"])
    if split == 1:
        return {}
    return {"workspace": 4 * count * split * int(values["BLOCK_M"]) * int(values["BLOCK_N"]), "semaphores": count}


def work(values: Mapping[str, Constant], step: Step, profile: Profile) -> Work:
    """Returns what a full bucket moves and computes: every operand once."""
    m, n, k = rows(values, step), int(values["N"]), int(values["K"])
    weight, epilogue = str(values["WEIGHT"]), str(values["EPILOGUE"])
    moved = n * k * ELEMENT_BYTES[weight] + m * k * ELEMENT_BYTES[str(values["A"])]
    if weight != "BF16":
        block_rows = int(values["SCALE_ROWS"])
        moved += 4 * (-(-n // block_rows) * -(-k // SCALE_COLUMNS) if block_rows else n)
    moved += 4 * n * int(values["BIAS"])
    moved += {"NONE": 0, "GROUP": 0, "TENSOR": 4}.get(str(values["A_SCALE"]), 4 * m)
    if epilogue == "ROPE":
        q, kv = (int(values[heads]) * int(values["HEAD_DIM"]) for heads in ("Q_HEADS", "KV_HEADS"))
        moved += m * (2 * q + 2 * kv * ELEMENT_BYTES[str(values["KV"])] + 4 * int(values["HEAD_DIM"]))
    else:
        elements = m * n // 2 if epilogue in _GATED else m * n
        moved += elements * ELEMENT_BYTES[str(values["OUT"])] * (2 if epilogue == "ADD" else 1) + 4 * m * int(
            values["AMAX"]
        )
    operations, fp8 = 2 * m * n * k, values["A_SCALE"] != "NONE"
    return Work(
        bytes=moved,
        fp8_operations=operations if fp8 else 0,
        bf16_operations=0 if fp8 else operations,
        blocks=grid(values, step, profile)[0],
    )
