"""What a GPU kernel is: its arguments, the constants of its shape, its tuning space, and the variants that they span.

A *family* (``gemm``, ``attention``, ...) is one :class:`GpuKernelSpec` around one Triton function. Its constants fix
the shape (sizes, modes); a :class:`Config` fixes how it is computed (tile sizes, warps, stages). Both together are a
:class:`GpuVariant`: one symbol of a code object, for any target that can run it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from paiton_artifacts.errors import UnsupportedShapeError, UnsupportedTargetError
from paiton_kernels.gpu.devices import Profile, Target

Constant = int | float | str | bool
"""Value of a compile-time parameter."""

Values = Mapping[str, Constant]

Grid = tuple[int, int, int]


def spelled(value: Constant) -> str:
    """Returns a number as it can stand in a C identifier: 30.0 is "30", 0.5 is "0p5", -1.5 is "m1p5"."""
    return f"{float(value):.9g}".replace(".", "p").replace("-", "m").replace("+", "")


_STORAGE = {"FP8": "*fp8", "BF16": "*bf16", "INT8": "*i8", "FP32": "*fp32"}


@dataclass(frozen=True, slots=True)
class GpuArg:
    """One run-time argument of a kernel.

    Attributes:
        name: the Triton parameter's name.
        type: Triton's name of the type ("*fp32", "*bf16", "*i32", "i64", "fp32", ...); "*fp8" is the target's e4m3;
            "@NAME" is a pointer to what the constant NAME says: "FP8", "BF16", "INT8" or "FP32".
        doc: shape and meaning.
        divisor: what addresses and integers must be a multiple of: 16 for every pointer; 1 or 16 for an integer. The
            code is specialised on it, so plans are checked against it.
    """

    name: str
    type: str
    doc: str
    divisor: int = 1

    def __post_init__(self) -> None:
        if self.pointer:
            object.__setattr__(self, "divisor", 16)

    @property
    def pointer(self) -> bool:
        """Whether it is an address."""
        return self.type[0] in "*@"

    def type_in(self, values: Values, target: Target) -> str:
        """Returns Triton's type of the argument in a variant on a target."""
        kind = _STORAGE[str(values[self.type[1:]])] if self.type.startswith("@") else self.type
        if kind != "*fp8":
            return kind
        return "*fp8e4b8" if target.fp8_unit == 2 else "*fp8e4nv"


@dataclass(frozen=True, slots=True)
class Config:
    """How a variant is computed: everything that tuning chooses.

    Attributes:
        values: compile-time parameters (tile sizes, split counts), by name, sorted.
        num_warps: warps per block.
        num_stages: software pipelining depth.
        options: further compiler options of the target's backend (waves_per_eu, matrix_instr_nonkdim), sorted.
    """

    values: tuple[tuple[str, int], ...] = ()
    num_warps: int = 4
    num_stages: int = 2
    options: tuple[tuple[str, int], ...] = ()

    @classmethod
    def of(cls, num_warps: int, num_stages: int, options: Mapping[str, int] | None = None, **values: int) -> Config:
        """Returns a configuration from keyword arguments."""
        return cls(tuple(sorted(values.items())), num_warps, num_stages, tuple(sorted((options or {}).items())))

    def as_json(self) -> dict[str, Any]:
        """Returns a JSON object for tuning tables."""
        return {
            "values": dict(self.values),
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "options": dict(self.options),
        }


@dataclass(frozen=True, slots=True)
class Work:
    """What one launch must move and compute, for predictions: DRAM bytes, matrix operations, blocks launched."""

    bytes: int
    fp8_operations: int = 0
    bf16_operations: int = 0
    blocks: int = 1


@dataclass(frozen=True, slots=True)
class Step:
    """The bucket that a launch is planned for: the largest step that it must cover.

    Attributes:
        tokens: T.
        requests: R.
        context: positions attended to by each request, for predictions only.
    """

    tokens: int
    requests: int
    context: int = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one launch and what must come out, computed in float64.

    Attributes:
        name: for the test's id.
        constants: of the variant.
        step: the bucket.
        arrays: pointer arguments by name. FP8 is held as uint8 codes of e4m3fn, bf16 as ml_dtypes.bfloat16. An
            argument missing here is a null pointer. Outputs hold what they hold before the launch.
        scalars: the other arguments by name.
        expected: outputs by name, float64 or integers, of the array's shape; NaN marks elements that must not have
            been written (they keep their bytes).
        tolerance: by output name: "f32", "bf16", "fp8" (tests/numerics.py) or "exact".
        configs: how to compute it; empty takes the first of the tuning space.
    """

    name: str
    constants: Mapping[str, Constant]
    step: Step
    arrays: Mapping[str, NDArray[Any]]
    scalars: Mapping[str, int | float]
    expected: Mapping[str, NDArray[Any]]
    tolerance: Mapping[str, str]
    configs: tuple[Config, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuKernelSpec:
    """A kernel family.

    Attributes:
        family: prefix of every symbol.
        function: the plain Python function in Triton's language (not decorated). A parameter FP8_UNIT receives the
            target's `fp8_unit`.
        args: run-time arguments, in the function's order, before its compile-time parameters.
        constants: names of the compile-time parameters that fix the shape.
        tunables: names of the compile-time parameters that a Config fixes.
        name: the readable part of a symbol after the family, from the constants: a C identifier.
        space: configurations to choose from, most promising first: (constants, step, profile) -> configs.
        grid: (constants and tunables, step, profile) -> blocks launched.
        work: (constants and tunables, step, profile) -> what the launch moves and computes.
        cases: inputs with expected outputs for a target: (target) -> cases.
        check: returns why the family cannot do these constants, or "".
        workspace: (constants and tunables, step, profile) -> bytes of scratch by argument name ("workspace") and
            elements of zeroed i32 semaphores ("semaphores") that one launch needs.
        defaults: constants that may be left out, with the value that they then have. Names do not show it.
    """

    family: str
    function: Callable[..., None]
    args: tuple[GpuArg, ...]
    constants: tuple[str, ...]
    tunables: tuple[str, ...]
    name: Callable[[Values], str]
    space: Callable[[Values, Step, Profile], Sequence[Config]]
    grid: Callable[[Values, Step, Profile], Grid]
    work: Callable[[Values, Step, Profile], Work]
    cases: Callable[[Target], Iterable[Case]]
    check: Callable[[Values, Target], str] = lambda _values, _target: ""
    workspace: Callable[[Values, Step, Profile], Mapping[str, int]] = lambda _values, _step, _profile: {}
    defaults: Mapping[str, Constant] = field(default_factory=dict, hash=False)

    def full(self, constants: Values) -> dict[str, Constant]:
        """Returns the constants in the family's order, those left out at their defaults; unknown ones stay."""
        known = {**self.defaults, **constants}
        ordered = {name: known[name] for name in self.constants if name in known}
        return {**ordered, **known}

    def variant(self, config: Config, **constants: Constant) -> GpuVariant:
        """Returns the variant with these constants, those left out at their defaults, and this configuration.

        Raises:
            TypeError: a constant or tunable is missing or unknown.
        """
        constants = self.full(constants)
        if constants.keys() != set(self.constants):
            raise TypeError(f"{self.family} needs the constants {', '.join(self.constants)}, got {sorted(constants)}")
        if dict(config.values).keys() != set(self.tunables):
            raise TypeError(f"{self.family} needs the tunables {', '.join(self.tunables)}, got {config.values}")
        return GpuVariant(self, tuple((name, constants[name]) for name in self.constants), config)


@dataclass(frozen=True, slots=True)
class GpuVariant:
    """A kernel family with its shape and configuration fixed: one symbol."""

    spec: GpuKernelSpec = field(repr=False)
    constants: tuple[tuple[str, Constant], ...]
    config: Config

    @property
    def values(self) -> dict[str, Constant]:
        """All compile-time parameters but FP8_UNIT."""
        return {**dict(self.constants), **dict(self.config.values)}

    @property
    def symbol(self) -> str:
        """The kernel's name: family, shape and configuration, so that a profiler's output can be read."""
        config = self.config
        parts = [f"{name.lower().replace('_', '')}{value}" for name, value in config.values]
        parts += [f"w{config.num_warps}", f"s{config.num_stages}"]
        if config.options:
            parts.append(hashlib.sha256(repr(config.options).encode()).hexdigest()[:6])
        return "_".join([self.spec.family, self.spec.name(dict(self.constants)), *parts])

    def require(self, target: Target) -> None:
        """Checks that a target can run this variant.

        Raises:
            UnsupportedTargetError: it reads FP8 and the target has none.
            UnsupportedShapeError: the family does not cover the shape there.
        """
        if not target.fp8 and any(type_.startswith("*fp8") for type_ in self.signature(target).values()):
            raise UnsupportedTargetError(
                f"kernel {self.symbol} needs FP8, which {target.name} does not have",
                hint="build for it with --weights bf16 --act bf16 --kv bf16",
            )
        if reason := self.spec.check(self.values, target):
            raise UnsupportedShapeError(f"kernel {self.spec.family} on {target.name}: {reason}")

    def signature(self, target: Target) -> dict[str, str]:
        """Returns Triton's types of the run-time arguments, in order."""
        values = self.values
        return {arg.name: arg.type_in(values, target) for arg in self.spec.args}
