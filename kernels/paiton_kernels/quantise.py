"""``quantise``: weights of a checkpoint as a bundle stores them. The build runs it; no plan does."""

from __future__ import annotations

from collections.abc import Mapping

from paiton_kernels.spec import Arg, KernelSpec, Macro, Value


def _name(macros: Mapping[str, Value]) -> str:
    return f"{macros['SOURCE']}_{macros['STORED']}".lower()


def _check(macros: Mapping[str, Value]) -> str:
    return "FP8 codes stay what they are" if macros["SOURCE"] == "FP8" and macros["STORED"] != "FP8" else ""


QUANTISE = KernelSpec(
    family="quantise",
    args=(
        Arg("x", "const void*", "SOURCE[rows][cols]"),
        Arg("codes", "void*", "STORED[rows][cols]; unused for STORED=NONE"),
        Arg(
            "scales", "mut f32*", "f32[rows]: what a row's codes are multiplied by; unused where a row has no new codes"
        ),
        Arg("rows", "i64", "how many"),
        Arg("cols", "i64", "elements of a row"),
        Arg("refused", "mut i32*", "i32[1]: set to 1 where x holds NaN or infinity: no result means anything"),
    ),
    macros=(
        Macro("SOURCE", "what weights are; FP8: codes that have scales", choices=("BF16", "F16", "F32", "FP8")),
        Macro(
            "STORED",
            "what they become: e4m3 without 0x80, or integers from -127 to 127; NONE: they are only looked at",
            choices=("FP8", "INT8", "NONE"),
        ),
    ),
    name=_name,
    check=_check,
)
