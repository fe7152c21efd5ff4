"""What a kernel is: its arguments, its compile-time parameters, and the variants that they span.

A *family* (``linear``, ``attention``, ...) is one :class:`KernelSpec`. Fixing its macros gives a :class:`Variant`: one
symbol of a code object. The argument struct and the parameter struct of the C side are generated from the spec, so that
there is one declaration of each; every field of an argument struct is 8 bytes wide, which makes packing trivial and
lets a relocation patch any of them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from paiton_artifacts.errors import UnsupportedShapeError

Value = int | str
"""A macro's value: an integer, or one of the macro's choices."""

KV_BLOCK_TOKENS = 16
"""Positions in one block of the KV cache."""

BLOCK_ELEMENTS = 64
"""Packed activation rows are padded with zeros to a multiple of this many elements."""

MAX_BIASES = 300
"""Tokens whose logits a request may bias (the limit of OpenAI's interface)."""

MAX_STOP_TOKENS = 8
"""Stop tokens of one request that the device compares with; further ones are the host's business."""

MAX_TOP_LOGPROBS = 20
"""Most probable tokens that a step can report for a row (the limit of OpenAI's interface)."""

MAX_EXPERTS = 256
"""Experts that a router can choose from."""

MAX_TOP_K = 16
"""Experts that it can choose for a token."""

MASK_BITS = 32
"""Tokens that one word of a mask allows or forbids."""

PACKED_ELEMENT_BYTES = 4
"""Upper bound, over all levels, of the bytes that one element of a packed activation row takes."""

C_TYPES = {
    "i64": "int64_t",
    "f64": "double",
    "void*": "void *",
    "const void*": "const void *",
    "i32*": "const int32_t *",
    "u64*": "const uint64_t *",
    "f32*": "const float *",
    "bf16*": "const uint16_t *",
    "mut i32*": "int32_t *",
    "mut f32*": "float *",
    "mut bf16*": "uint16_t *",
}
"""The C spelling of every argument type; "mut" marks what a kernel may write through the pointer."""


@dataclass(frozen=True, slots=True)
class Arg:
    """One 8-byte field of a kernel's argument struct.

    Attributes:
        name: the field's name.
        ctype: a key of :data:`C_TYPES`.
        doc: shape, dtype and meaning.
    """

    name: str
    ctype: str
    doc: str


@dataclass(frozen=True, slots=True)
class Macro:
    """One compile-time parameter.

    Attributes:
        name: upper case, as in the C parameter struct.
        doc: what it means.
        choices: the allowed words; empty for an integer.
        default: the value where a variant does not say; None makes it compulsory.
        minimum: the smallest allowed integer.
    """

    name: str
    doc: str
    choices: tuple[str, ...] = ()
    default: Value | None = None
    minimum: int = 1


Check = Callable[[Mapping[str, Value]], str]
Name = Callable[[Mapping[str, Value]], str]
Scratch = Callable[[Mapping[str, Value], int], int]


def _no_check(_macros: Mapping[str, Value]) -> str:
    return ""


def _no_scratch(_macros: Mapping[str, Value], _max_tokens: int) -> int:
    return 0


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """A kernel family.

    Attributes:
        family: name of the C function and prefix of every symbol.
        args: fields of the argument struct, in order.
        macros: compile-time parameters, in order.
        name: the readable part of a symbol after the family; different macros must give different names.
        check: returns why the family cannot do these macros, or "".
        scratch: bytes of private scratch that one worker needs for a step of `max_tokens` tokens.
        shared: the function takes its workers as a `struct team`, whose units they share as they come.
    """

    family: str
    args: tuple[Arg, ...]
    macros: tuple[Macro, ...]
    name: Name
    check: Check = _no_check
    scratch: Scratch = _no_scratch
    shared: bool = False

    def variant(self, **macros: Value) -> Variant:
        """Returns the variant with these macros.

        Raises:
            UnsupportedShapeError: the kernels of this family do not cover the shape.
            TypeError: an unknown macro, or a compulsory one left out.
        """
        known = {macro.name for macro in self.macros}
        if unknown := sorted(macros.keys() - known):
            raise TypeError(f"{self.family} has no macro {unknown[0]}")
        values: dict[str, Value] = {}
        for macro in self.macros:
            value = macros.get(macro.name, macro.default)
            if value is None:
                raise TypeError(f"{self.family} needs macro {macro.name}")
            self._check_macro(macro, value)
            values[macro.name] = value
        if reason := self.check(values):
            raise UnsupportedShapeError(f"kernel {self.family}: {reason}")
        return Variant(self, tuple(values.items()))

    def _check_macro(self, macro: Macro, value: Value) -> None:
        if macro.choices:
            if value not in macro.choices:
                raise UnsupportedShapeError(
                    f"kernel {self.family}: {macro.name} is {value!r}", hint=f"one of {', '.join(macro.choices)}"
                )
        elif not isinstance(value, int) or not macro.minimum <= value < 1 << 31:
            raise UnsupportedShapeError(
                f"kernel {self.family}: {macro.name} is {value!r}", hint=f"an integer from {macro.minimum} to 2^31 - 1"
            )

    def struct_source(self) -> str:
        """Returns the C declarations of the argument struct, the parameter struct and the macros' choices."""
        lines = [f"struct {self.family}_args {{"]
        for arg in self.args:
            c_type = C_TYPES[arg.ctype]
            lines.append(f"    {c_type}{'' if c_type.endswith('*') else ' '}{arg.name};")
        lines += ["};", f"struct {self.family}_params {{", *(f"    int64_t {m.name};" for m in self.macros), "};"]
        for macro in self.macros:
            if macro.choices:
                names = (f"{self.family}_{macro.name}_{choice}".upper() for choice in macro.choices)
                lines.append(f"enum {{ {', '.join(names)} }};")
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel family with its macros fixed: one symbol of a code object."""

    spec: KernelSpec
    items: tuple[tuple[str, Value], ...]
    macros: Mapping[str, Value] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "macros", dict(self.items))

    @property
    def symbol(self) -> str:
        """The exported name, unique among all variants of all families."""
        name = self.spec.name(self.macros)
        return f"{self.spec.family}_{name}"

    def pack(self, values: Mapping[str, int | float]) -> bytes:
        """Packs the argument struct; what is not given is 0.

        Args:
            values: by argument name; floats for f64 fields, addresses or integers for the others.

        Raises:
            TypeError: a name that the kernel does not have.
        """
        known = {arg.name for arg in self.spec.args}
        if unknown := sorted(values.keys() - known):
            raise TypeError(f"{self.spec.family} has no argument {unknown[0]}")
        code = {"f64": "d", "i64": "q"}
        layout = "<" + "".join(code.get(arg.ctype, "Q") for arg in self.spec.args)
        return struct.pack(layout, *(values.get(arg.name, 0) for arg in self.spec.args))

    def arg_offset(self, name: str) -> int:
        """Returns the byte offset of an argument in the packed struct.

        Raises:
            TypeError: a name that the kernel does not have.
        """
        for index, arg in enumerate(self.spec.args):
            if arg.name == name:
                return 8 * index
        raise TypeError(f"{self.spec.family} has no argument {name}")

    def worker_scratch_bytes(self, max_tokens: int) -> int:
        """Returns the bytes of scratch per worker, a multiple of 64, for steps of at most `max_tokens` tokens."""
        return -(-self.spec.scratch(self.macros, max_tokens) // 64) * 64

    def source(self) -> str:
        """Returns the C definition of this variant's symbol: a call of the family's function with constants."""
        family = self.spec.family
        fields = []
        for macro in self.spec.macros:
            value = self.macros[macro.name]
            fields.append(
                f".{macro.name} = " + (f"{family}_{macro.name}_{value}".upper() if macro.choices else f"{value}")
            )
        workers = "(struct team){worker, workers, shares, 0}" if self.spec.shared else "worker, workers"
        return (
            f"KERNEL void {self.symbol}(const struct {family}_args *a, "
            f"uint32_t worker, uint32_t workers, struct share *shares) {{\n"
            f"    (void)shares;\n"
            f"    const struct {family}_params p = {{{', '.join(fields)}}};\n"
            f"    {family}(a, {workers}, p);\n}}\n"
        )


COUNTS = Arg("counts", "i32*", "i32[4]: tokens, requests, logits rows of this step, 0")
WORKER_SCRATCH = Arg("worker_scratch", "void*", "private memory of worker 0, 64-byte aligned")
WORKER_SCRATCH_STRIDE = Arg("worker_scratch_stride", "i64", "bytes from one worker's scratch to the next one's")
PAGING = (
    Arg("positions", "i32*", "i32[T]: position of each token in its request"),
    Arg("request_of", "i32*", "i32[T]: row of block_tables of each token"),
    Arg("block_tables", "i32*", "i32[R][block_table_stride]: KV block of every 16 positions"),
    Arg("block_table_stride", "i64", "columns of block_tables"),
)
KV_CACHE = (
    Arg(
        "kv", "void*", "this layer's part of KV block 0: KV_HEADS tiles of K, then of V (cpu/kv_layout.h); bf16 or e4m3"
    ),
    Arg("kv_block_stride", "i64", "bytes from one KV block to the next"),
    Arg("k_scale", "f32*", "f32[1]: what a stored K is multiplied by (KV=FP8)"),
    Arg("v_scale", "f32*", "f32[1]: what a stored V is multiplied by (KV=FP8)"),
)
