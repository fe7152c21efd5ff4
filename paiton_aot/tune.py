"""Measures the configurations of the kernels that plans need, on a device, and writes the fastest to a tuning table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paiton_aot.tune_bench import Bench, Protocol, launch_of
from paiton_aot.tune_operands import Operand, Operands, decoded, measurable, operands_of, producer_of
from paiton_artifacts.errors import (
    CompilerError,
    DeviceFaultError,
    DriverError,
    OutOfMemoryError,
    VerificationError,
)
from paiton_kernels.gpu.compile import CompiledKernel, compile_all
from paiton_kernels.gpu.devices import Profile, Target
from paiton_kernels.gpu.spec import Config, GpuVariant
from paiton_kernels.gpu.tuning import Request, bucket_of
from paiton_kernels.gpu.tuning_table import Entry, TuningTable, read_table
from paiton_runtime.drivers.device_launch import KernelLaunch

_TOLERANCE = {"FP32": 0.02, "BF16": 0.02, "FP8": 0.05}
"""How far results of two configurations may lie apart, relative to their norm: orders of sums differ, no more."""

_SEMAPHORES = "semaphores"


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out for one request.

    Attributes:
        request: what was asked for.
        bucket: its bucket in the table.
        entry: the fastest configuration.
        measured: how many configurations ran.
        skipped: why others did not, by symbol.
    """

    request: Request
    bucket: str
    entry: Entry
    measured: int
    skipped: Mapping[str, str]


@dataclass(slots=True)
class TuneResult:
    """The table, what was measured for it, and the families that could not be."""

    table: TuningTable
    measured: list[Measured] = field(default_factory=list)
    unmeasured: set[str] = field(default_factory=set)


def tune(
    requests: Sequence[Request],
    bench: Bench,
    target: Target,
    profile: Profile,
    output: Path,
    cache_dir: Path,
    protocol: Protocol | None = None,
    candidates: int = 0,
    *,
    resume: bool = False,
    advance: Callable[[int], object] = lambda _count: None,
) -> TuneResult:
    """Measures the configurations of every request and writes the fastest ones to a table.

    The table is written after each request, into one that is there already: nothing is lost if a later one fails.

    Args:
        requests: what to choose for; requests of one bucket are measured once.
        bench: the device.
        target: its instruction set.
        profile: what it is to the planner.
        output: the table.
        cache_dir: where compiled kernels are kept.
        protocol: how to measure.
        candidates: how many configurations to try, the most promising first; 0 for all.
        resume: keep what the table has.
        advance: called with the number of requests done since the last call.

    Raises:
        UsageError, UnsupportedVersionError: `output` exists and is not a table for this device and compiler.
        CompilerError: no configuration of a kernel compiles, or none runs.
        DeviceFaultError: a kernel crashed; the message names it.
        VerificationError: configurations of a kernel compute different things.
    """
    result = TuneResult(read_table(output, profile) if output.exists() else TuningTable(profile.name))
    seen: set[tuple[str, str, str]] = set(result.table.entries) if resume else set()
    for request in dict.fromkeys(requests):
        bucket, step = bucket_of(request, profile)
        key = (request.spec.family, request.shape, bucket)
        space = replace(request, step=step).space(profile)[: candidates or None]
        if len(space) > 1 and key not in seen:
            seen.add(key)
            if measurable(request.spec):
                contest = _Contest(replace(request, step=step), bench, target, profile, protocol or Protocol())
                made = contest.decide(bucket, space, cache_dir)
                result.measured.append(made)
                result.table.entries[key] = made.entry
                result.table.write(output)
            else:
                result.unmeasured.add(request.spec.family)
        advance(1)
    return result


class _Contest:
    """The configurations of one request on a device."""

    def __init__(self, request: Request, bench: Bench, target: Target, profile: Profile, protocol: Protocol) -> None:
        self.request = request
        self.bench = bench
        self.target = target
        self.profile = profile
        self.protocol = protocol
        self.operands: Operands = operands_of(request, request.step)
        self.copies: list[dict[str, int]] = []
        self.skipped: dict[str, str] = {}
        self._reference: tuple[str, dict[str, NDArray[np.float32]]] | None = None

    def decide(self, bucket: str, space: Sequence[Config], cache_dir: Path) -> Measured:
        """Compiles and measures all configurations, and returns the fastest."""
        variants = {variant.symbol: variant for variant in map(self.request.variant, space)}
        producers = {symbol: made for symbol, variant in variants.items() if (made := producer_of(variant))}
        failures: dict[str, CompilerError] = {}
        everything = [*variants.values(), *dict.fromkeys(producers.values())]
        kernels = compile_all(everything, self.target, cache_dir, failures=failures)
        self.skipped = {symbol: error.message for symbol, error in failures.items()}
        times: dict[str, float] = {}
        with ExitStack() as stack:
            self._place(stack)
            for symbol, variant in variants.items():
                producer = producers.get(symbol)
                if symbol in kernels and (producer is None or producer.symbol in kernels):
                    seconds = self._try(variant, producer, kernels)
                    if seconds is not None:
                        times[symbol] = seconds
        what = f"kernel {self.request.spec.family} ({self.request.shape})"
        if not times:
            reason = next(iter(self.skipped.values()), "it has none")
            raise CompilerError(f"no configuration of {what} runs on {self.bench.device.name}: {reason}")
        best = min(times, key=times.__getitem__)
        entry = Entry(variants[best].config, f"measured on {self.bench.name}", times[best] * 1e6)
        return Measured(self.request, bucket, entry, len(times), self.skipped)

    def _place(self, stack: ExitStack) -> None:
        """Puts the operands onto the device, streamed ones several times."""
        memory = self.operands.memory
        streamed = {name: operand for name, operand in memory.items() if operand.streamed}
        size = sum(operand.size for operand in streamed.values())
        kept = {name: self.bench.place(operand, stack) for name, operand in memory.items() if not operand.streamed}
        for _ in range(self.bench.copies_of(size, self.protocol, self.profile)):
            own = {name: self.bench.place(operand, stack) for name, operand in streamed.items()}
            self.copies.append({**kept, **own})

    def _try(
        self, variant: GpuVariant, producer: GpuVariant | None, kernels: Mapping[str, CompiledKernel]
    ) -> float | None:
        """Returns the seconds of a variant; None if the device refuses it."""
        try:
            with ExitStack() as stack:
                return self._measure(variant, producer, kernels, stack)
        except DeviceFaultError as error:
            what = f"kernel {variant.symbol} crashed: {error.operation}"
            raise DeviceFaultError(what, error.name, error.code, hint="measure the rest with --resume") from error
        except (DriverError, OutOfMemoryError) as error:
            self.skipped[variant.symbol] = error.message
            return None

    def _measure(
        self,
        variant: GpuVariant,
        producer: GpuVariant | None,
        kernels: Mapping[str, CompiledKernel],
        stack: ExitStack,
    ) -> float:
        scratch = self._scratch(variant, stack) | (self._scratch(producer, stack) if producer else {})
        if producer:
            self.bench.run(self._launches(producer, kernels, scratch, stack)[0])
        launches = self._launches(variant, kernels, scratch, stack)
        for name in self.operands.outputs:
            self.bench.restore(self.operands.memory[name], self.copies[0][name])
        self.bench.run(launches[0])
        self._compare(variant)
        return self.bench.measure(launches, self.protocol)

    def _scratch(self, variant: GpuVariant, stack: ExitStack) -> dict[str, int]:
        needed = variant.spec.workspace(variant.values, self.request.step, self.profile)
        sizes = {name: 4 * size if name == _SEMAPHORES else size for name, size in needed.items()}
        return {name: self.bench.place(Operand(size), stack) for name, size in sizes.items() if size}

    def _launches(
        self,
        variant: GpuVariant,
        kernels: Mapping[str, CompiledKernel],
        scratch: Mapping[str, int],
        stack: ExitStack,
    ) -> list[KernelLaunch]:
        """Returns a launch for each copy of the operands."""
        kernel = kernels[variant.symbol]
        function = self.bench.load(kernel, stack)
        grid = variant.spec.grid(variant.values, self.request.step, self.profile)
        types = variant.signature(self.target)
        scalars = self.operands.scalars
        return [launch_of(kernel, function, grid, types, {**copy, **scratch}, scalars) for copy in self.copies]

    def _compare(self, variant: GpuVariant) -> None:
        """Compares a variant's results with those of the first one: what is fast must also be right.

        Raises:
            VerificationError: they differ by more than another order of sums explains.
        """
        found = {}
        for name, storage in self.operands.outputs.items():
            content = self.bench.read(self.copies[0][name], self.operands.memory[name].size)
            found[name] = decoded(content, storage)
        if self._reference is None:
            self._reference = variant.symbol, found
        symbol, reference = self._reference
        for name, values in found.items():
            apart = float(np.linalg.norm(values - reference[name]))
            apart /= max(float(np.linalg.norm(reference[name])), 1e-30)
            if not apart <= _TOLERANCE[self.operands.outputs[name]]:
                raise VerificationError(
                    f"{name} of kernel {variant.symbol} differs from that of {symbol} by {apart:.2g} of its norm",
                    hint="a bug of the kernel, its compiler or the device: report it with the driver's version",
                )
