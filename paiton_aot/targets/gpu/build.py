"""From a lowered model to what a bundle holds for GPU targets: code archive, kernel table, plans and memory plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from paiton_aot.lower import Lowered
from paiton_aot.options import BuildOptions
from paiton_aot.progress import Progress
from paiton_aot.targets.gpu.plans import MAX_TOKENS, Configured, configure, draft_chains, settle, tuning_requests
from paiton_aot.targets.shape import Shape
from paiton_artifacts.errors import UnsupportedError, UsageError
from paiton_artifacts.kernel_table import Kernel, KernelArgument, KernelTable
from paiton_artifacts.layout import CODE_ALIGNMENT, align_up
from paiton_artifacts.plan import Plan
from paiton_artifacts.schema import MemoryPlan
from paiton_kernels.gpu.compile import COMPILER, CompiledKernel, compile_all
from paiton_kernels.gpu.devices import DEFAULT_PROFILES, Profile, Target, profile_named, target_named
from paiton_kernels.gpu.spec import GpuArg, GpuVariant
from paiton_kernels.gpu.tuning import choose

RANKS = (1, 2, 4, 8)
"""Numbers of ranks that the kernels for collectives are made and tested for."""


@dataclass(frozen=True, slots=True)
class GpuTarget:
    """Everything of one GPU target.

    Attributes:
        target: which.
        code: the archive of its kernels' images.
        table: what lies where in it.
        plans: of all profiles.
        memory: one plan per profile.
        compiler: name and version of what compiled the code.
        configured: what the plans were made from, one per profile.
        spilling: symbols of kernels that spill registers.
    """

    target: Target
    code: bytes
    table: KernelTable
    plans: tuple[Plan, ...]
    memory: tuple[MemoryPlan, ...]
    compiler: str = COMPILER
    configured: tuple[Configured, ...] = ()
    spilling: tuple[str, ...] = ()


def gpu_shape(lowered: Lowered, options: BuildOptions) -> Shape:
    """Returns a rank's shape with the limits of GPU plans."""
    return replace(lowered.shape, max_tokens=options.max_num_batched_tokens or MAX_TOKENS)


def build_targets(lowered: Lowered, options: BuildOptions, progress: Progress) -> tuple[GpuTarget, ...]:
    """Chooses, compiles and plans the kernels of every GPU target that was asked for.

    Raises:
        UnsupportedError: a target cannot run the model, or not with so many ranks.
        UsageError: a profile of a target that was not asked for.
        CompilerError: a kernel does not compile; the message names it.
    """
    targets = [target_named(name) for name in options.targets]
    if targets and options.tp not in RANKS:
        raise UnsupportedError(
            f"--tp {options.tp} is not supported on {targets[0].name}",
            hint=f"use --tp with one of {', '.join(map(str, RANKS))}, or leave out the GPU targets",
        )
    profiles = _profiles(targets, options.profiles)
    return tuple(_build_target(target, profiles[target.name], lowered, options, progress) for target in targets)


def _profiles(targets: Sequence[Target], names: Sequence[str]) -> dict[str, list[Profile]]:
    """Returns the profiles of each target: those named, else the usual one."""
    chosen: dict[str, list[Profile]] = {target.name: [] for target in targets}
    for name in dict.fromkeys(names):
        profile = profile_named(name)
        if profile.target not in chosen:
            raise UsageError(
                f"--profile {name} is a device of {profile.target}, which is not built",
                hint=f"add --target {profile.target}",
            )
        chosen[profile.target].append(profile)
    return {target: found or [profile_named(DEFAULT_PROFILES[target])] for target, found in chosen.items()}


def _build_target(
    target: Target, profiles: Sequence[Profile], lowered: Lowered, options: BuildOptions, progress: Progress
) -> GpuTarget:
    shape = gpu_shape(lowered, options)
    chains = draft_chains(lowered.program, lowered.tensors, shape)
    requests = tuning_requests(chains)
    configured: list[Configured] = []
    sources: dict[str, str] = {}
    for profile in profiles:
        with progress.bar(f"tune {profile.name}", len(requests), "kernel") as advance:
            choices = choose(
                requests,
                target,
                profile,
                options.cache_dir,
                tables=options.tuning_tables,
                candidates=options.candidates,
                advance=advance,
            )
        made = configure(chains, choices, profile, shape, lowered.blob_bytes)
        configured.append(made)
        for request, choice in choices.items():
            variant = request.spec.variant(choice.config, **dict(request.constants))
            sources.setdefault(variant.symbol, choice.source)
    variants = {symbol: variant for made in configured for symbol, variant in made.variants.items()}
    with progress.bar(f"compile {target.name}", len(variants), "kernel") as advance:
        compiled = compile_all(list(variants.values()), target, options.cache_dir, advance=advance)
    code, table = pack_kernels(target, variants, compiled, sources)
    kernels = {kernel.symbol: kernel for kernel in table.kernels}
    plans = tuple(plan for made in configured for plan in settle(made, kernels, lowered.tensors, shape))
    memory = tuple(made.memory for made in configured)
    spilling = tuple(sorted(symbol for symbol, kernel in compiled.items() if kernel.spills))
    return GpuTarget(target, code, table, plans, memory, configured=tuple(configured), spilling=spilling)


def pack_kernels(
    target: Target,
    variants: Mapping[str, GpuVariant],
    compiled: Mapping[str, CompiledKernel],
    sources: Mapping[str, str],
) -> tuple[bytes, KernelTable]:
    """Returns the archive of a target's kernels, and the table of what lies where.

    Args:
        target: that they are for.
        variants: by symbol.
        compiled: by symbol.
        sources: what chose each configuration, by symbol; "only" where none is named.
    """
    archive = bytearray()
    kernels = []
    for symbol in sorted(variants):
        kernel = compiled[symbol]
        offset = align_up(len(archive), CODE_ALIGNMENT)
        archive += bytes(offset - len(archive)) + kernel.code
        declared = {arg.name: arg for arg in variants[symbol].spec.args}
        arguments = tuple(
            KernelArgument(a.name, _kind(declared.get(a.name)), a.offset, a.size, _divisor(declared.get(a.name)))
            for a in kernel.args
        )
        kernels.append(
            Kernel(
                symbol=symbol,
                offset=offset,
                size=len(kernel.code),
                threads=kernel.threads,
                shared_bytes=kernel.shared_bytes,
                args_bytes=kernel.args_bytes,
                arguments=arguments,
                tuning=sources.get(symbol, "only"),
            )
        )
    return bytes(archive), KernelTable(target.name, tuple(kernels))


def _kind(arg: GpuArg | None) -> str:
    """Returns the kind of an argument; what the compiler added is a pointer to scratch that is not used."""
    if arg is None or arg.pointer:
        return "pointer"
    return "float" if arg.type.startswith("fp") else "integer"


def _divisor(arg: GpuArg | None) -> int:
    return 1 if arg is None else arg.divisor
