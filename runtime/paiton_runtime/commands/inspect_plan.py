"""What `paiton-run inspect --plan` prints: the launches of one plan with names instead of offsets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from paiton_artifacts.errors import UsageError
from paiton_artifacts.kernel_table import Kernel, unpack_argument
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Access, Launch, Plan, Relocation, RelocationKind
from paiton_artifacts.reader import Bundle
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import PlanFile

_ACCESS = {Access.NONE: "", Access.READ: "read", Access.WRITE: "write", Access.READ | Access.WRITE: "read, write"}


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan with what is needed to name its arguments."""

    plan: Plan
    kernels: Mapping[str, Kernel]  # by symbol; empty on the cpu
    names: Mapping[tuple[Region, int], str]  # what starts at an offset of a region

    def as_json(self) -> list[dict[str, Any]]:
        """Returns the launches of the template, each with the repeats of its segment."""
        return list(self._launches())

    def as_text(self) -> str:
        """Returns one block of lines per launch."""
        plan = self.plan
        counts = [f"{len(s.launches)}" + (f" x {s.repeat}" if s.repeat > 1 else "") for s in plan.segments]
        total = sum(len(segment.launches) * segment.repeat for segment in plan.segments)
        head = (
            f"plan {plan_name(plan)} for {plan.target} ({plan.profile}): {total} launches, {' + '.join(counts)};"
            f" up to {plan.tokens} tokens of {plan.requests} requests"
        )
        return "\n".join([head, *map(_text, self._launches())])

    def _launches(self) -> Iterator[dict[str, Any]]:
        for segment in self.plan.segments:
            for launch in segment.launches:
                kernel = self.kernels.get(launch.symbol)
                row: dict[str, Any] = {
                    "repeat": segment.repeat,
                    "symbol": launch.symbol,
                    "flags": [flag.name or "" for flag in launch.flags],
                }
                if kernel is not None:
                    row |= {
                        "grid": list(launch.grid),
                        "threads": kernel.threads,
                        "shared_bytes": kernel.shared_bytes,
                        "tuning": kernel.tuning,
                    }
                yield {**row, "arguments": list(self._arguments(launch, kernel))}

    def _arguments(self, launch: Launch, kernel: Kernel | None) -> Iterator[str]:
        """Yields one line per argument: those with an address, and on GPUs the other values too."""
        arguments = {argument.offset: argument for argument in kernel.arguments} if kernel else {}
        relocations = {relocation.arg_offset: relocation for relocation in launch.relocations}
        for offset in sorted({*arguments, *relocations}):
            argument = arguments.get(offset)
            name = argument.name if argument else f"+{offset}"
            if relocation := relocations.get(offset):
                yield f"{name}: {self._place(relocation)}"
            elif argument and argument.name:
                value = unpack_argument(argument, launch.args)
                if value or argument.kind != "pointer":  # null pointers are those that the variant does not use
                    yield f"{name}: {value}"

    def _place(self, relocation: Relocation) -> str:
        """Returns e.g. "weights layers.0.qkv_proj + i * 4096, 1024 B, read"."""
        if relocation.kind is RelocationKind.RANK:
            return f"rank * {relocation.offset}"
        region = relocation.region
        known = self.names.get((region, relocation.offset))
        peer = f"rank {relocation.rank} " if relocation.kind is RelocationKind.PEER else ""
        where = f"{region.name.lower()} {known}" if known else f"{region.name.lower()}[{relocation.offset}]"
        stride = f" + i * {relocation.stride}" if relocation.stride else ""
        return f"{peer}{where}{stride}, {relocation.size} B, {_ACCESS[relocation.access]}"


def find_plan(bundle: Bundle, name: str, target: str | None, profile: str | None) -> PlanView:
    """Returns a plan of a bundle by name, of the first target that has it where none is named.

    Raises:
        UsageError: there is none of that name.
        UnsupportedTargetError: the bundle was not built for the target.
    """
    if target is not None:
        bundle.memory(target, profile)
    for entry in bundle.manifest.plans:
        if plan_name(entry) != name or target not in (None, entry.target) or profile not in (None, entry.profile):
            continue
        kernels = bundle.kernels(entry.target)
        memory = bundle.memory(entry.target, entry.profile)
        names = {(Region.WEIGHTS, tensor.offset): tensor.name for tensor in bundle.manifest.tensors}
        names |= {(Region.IO, field.offset): field.name for field in memory.io}
        names[memory.logits_region, memory.logits_offset] = "logits"
        return PlanView(bundle.load_plan(entry, kernels), kernels, names)
    names_of = ", ".join(dict.fromkeys(plan_name(entry) for entry in bundle.manifest.plans))
    raise UsageError(f"no plan {name}" + (f" for {target}" if target else ""), hint=f"the bundle has: {names_of}")


def plan_name(plan: Plan | PlanFile) -> str:
    """Returns a plan's name on the command line, such as forward-t1-r1."""
    return f"{plan.family}-t{plan.tokens}-r{plan.requests}"


def _text(launch: Mapping[str, Any]) -> str:
    head = f"  {launch['repeat']} x {launch['symbol']} {' '.join(launch['flags'])}".rstrip()
    lines = [head]
    if "grid" in launch:
        blocks = " x ".join(map(str, launch["grid"]))
        lines.append(
            f"    {blocks} blocks of {launch['threads']} threads, {launch['shared_bytes']} B shared,"
            f" tuning: {launch['tuning']}"
        )
    return "\n".join([*lines, *(f"      {argument}" for argument in launch["arguments"])])
