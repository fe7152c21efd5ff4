"""Which configuration each kernel of a plan gets: measured, recorded or ranked.

Sources, the first that has an answer: tables that the user passes (measured on a device), the table recorded beside the
kernels, the static ranking of the family's space. A bucket is rounded up to a power of two, so that nearby steps share
kernels, and leaves out what does not change the choice.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from paiton_artifacts.errors import CompilerError, UnsupportedShapeError, UsageError
from paiton_kernels.cache_file import write_atomically
from paiton_kernels.gpu import ranking
from paiton_kernels.gpu.compile import compile_all
from paiton_kernels.gpu.compile_job import COMPILER, CompileJob
from paiton_kernels.gpu.devices import Profile, Target
from paiton_kernels.gpu.spec import Config, Constant, GpuKernelSpec, GpuVariant, Step
from paiton_kernels.gpu.tuning_memory import memory_key, recall, remember
from paiton_kernels.gpu.tuning_table import STATIC_RANKING, Entry, TuningTable, read_table, recorded_table

SMALLEST_BUCKET = 16
"""Steps of fewer tokens, or fewer logits rows, than a tile of the matrix instructions share its configuration."""

_BATCH = 64
"""Kernels that are compiled together: enough for all processors, few enough to keep in memory."""


@dataclass(frozen=True, slots=True)
class Request:
    """A kernel that needs a configuration.

    Attributes:
        spec: its family.
        constants: its shape, in the family's order.
        step: the bucket.
    """

    spec: GpuKernelSpec
    constants: tuple[tuple[str, Constant], ...]
    step: Step

    def __post_init__(self) -> None:
        object.__setattr__(self, "constants", tuple(self.spec.full(dict(self.constants)).items()))

    @property
    def shape(self) -> str:
        """The readable name of the shape."""
        return self.spec.name(dict(self.constants))

    def space(self, profile: Profile) -> Sequence[Config]:
        """Returns the configurations to choose from, most promising first.

        Raises:
            UnsupportedShapeError: there are none.
        """
        found = _space(self, profile)
        if not found:
            raise UnsupportedShapeError(
                f"kernel {self.spec.family} ({self.shape}) has no configuration for {profile.name}"
            )
        return found

    def variant(self, config: Config) -> GpuVariant:
        """Returns the kernel with a configuration.

        Raises:
            UsageError: the configuration, out of a table, has other tunables than the family.
        """
        try:
            return self.spec.variant(config, **dict(self.constants))
        except TypeError as error:
            raise UsageError(f"configuration of kernel {self.spec.family}: {error}") from error


@functools.lru_cache(maxsize=4096)
def _space(request: Request, profile: Profile) -> tuple[Config, ...]:
    """Returns a request's space; some families order thousands of tiles for it."""
    return tuple(request.spec.space(dict(request.constants), request.step, profile))


@dataclass(frozen=True, slots=True)
class Choice:
    """A configuration and what chose it: "measured", "recorded", "static", or "only" where there is no other."""

    config: Config
    source: str


def bucket_of(request: Request, profile: Profile) -> tuple[str, Step]:
    """Returns the name of a request's bucket in tuning tables, and the step that stands for it.

    Tokens and requests appear in the name ("t64", "r32", "t64r32") if the grid or the work depends on them. One alone
    is rounded up to a power of two and at least SMALLEST_BUCKET; both together are rounded up only, since their ratio
    tells prefill from decode.
    """
    step = request.step
    by_tokens, by_requests = _dependence(request.spec, request.constants, profile)
    least = 1 if by_tokens and by_requests else SMALLEST_BUCKET
    tokens = max(least, _power_of_two(step.tokens)) if by_tokens else step.tokens
    requests = max(least, _power_of_two(step.requests)) if by_requests else step.requests
    name = (f"t{tokens}" if by_tokens else "") + (f"r{requests}" if by_requests else "")
    return name or "any", replace(step, tokens=tokens, requests=requests)


def _power_of_two(value: int) -> int:
    return 1 << (value - 1).bit_length()


@functools.lru_cache(maxsize=4096)
def _dependence(
    spec: GpuKernelSpec, constants: tuple[tuple[str, Constant], ...], profile: Profile
) -> tuple[bool, bool]:
    """Returns whether a shape's grid or work depends on the tokens, and whether on the requests, of a step."""
    some = Step(1024, 128)
    values = {**dict(constants), **dict(Request(spec, constants, some).space(profile)[0].values)}

    def seen(step: Step) -> tuple[object, ...]:
        return spec.grid(values, step, profile), spec.work(values, step, profile)

    return seen(some) != seen(replace(some, tokens=2048)), seen(some) != seen(replace(some, requests=256))


def choose(
    requests: Sequence[Request],
    target: Target,
    profile: Profile,
    cache_dir: Path,
    tables: Sequence[Path] = (),
    candidates: int = 0,
    advance: Callable[[int], object] = lambda _count: None,
) -> dict[Request, Choice]:
    """Chooses a configuration for every request.

    Args:
        requests: what to choose for; duplicates are dropped.
        target: what the kernels are compiled for.
        profile: the device that they run on.
        cache_dir: where compiled kernels and the ranking's results are kept.
        tables: files with measured choices; the first that has an answer wins.
        candidates: how many configurations of a space the static ranking tries, the most promising first, and more only
            if all of them spill; 0 is all.
        advance: called with the number of requests decided since the last call.

    Raises:
        UsageError: a table is no table, or one for another device.
        UnsupportedVersionError: a table is for another compiler or other kernels.
        UnsupportedTargetError, UnsupportedShapeError: the target cannot run a kernel.
        CompilerError: no configuration of a kernel runs without spilling.
    """
    if profile.target != target.name:
        raise UsageError(f"profile {profile.name} is a device of {profile.target}, not of {target.name}")
    measured = [read_table(path, profile) for path in tables]
    recorded = recorded_table(profile)
    wanted = list(dict.fromkeys(requests))
    identities = [(request.spec.family, request.constants, request.step) for request in wanted]
    specs = {request.spec for request in wanted}
    key = memory_key(specs, COMPILER, ranking.VERSION, target, profile, measured, recorded, candidates, identities)
    memory = cache_dir / "gpu" / f"{key}.choices" if key else None
    known = recall(memory) if memory else None
    if known is not None:
        advance(len(wanted))
        return {request: Choice(*choice) for request, choice in zip(wanted, known, strict=True)}
    choices = _decide(wanted, target, profile, cache_dir, measured, recorded, candidates, advance)
    if memory:
        remember(memory, [(choice.config, choice.source) for choice in choices.values()])
    return choices


def _decide(
    requests: Sequence[Request],
    target: Target,
    profile: Profile,
    cache_dir: Path,
    measured: Sequence[TuningTable],
    recorded: TuningTable | None,
    candidates: int,
    advance: Callable[[int], object],
) -> dict[Request, Choice]:
    choices: dict[Request, Choice] = {}
    undecided = []
    for request in requests:
        choice = _looked_up(request, profile, measured, recorded)
        if choice is None:
            undecided.append(request)
        else:
            choices[request] = choice
    advance(len(choices))
    for request, entry in static_choices(undecided, target, profile, cache_dir, candidates):
        choices[request] = Choice(entry.config, "static")
        advance(1)
    return {request: choices[request] for request in requests}


def _looked_up(
    request: Request, profile: Profile, measured: Sequence[TuningTable], recorded: TuningTable | None
) -> Choice | None:
    bucket, step = bucket_of(request, profile)
    for table in measured:
        if config := table.config(request.spec, request.shape, bucket):
            ranked = table.entries[request.spec.family, request.shape, bucket].provenance == STATIC_RANKING
            return Choice(config, "static" if ranked else "measured")
    space = replace(request, step=step).space(profile)
    if len(space) == 1:
        return Choice(space[0], "only")
    entry = recorded.entries.get((request.spec.family, request.shape, bucket)) if recorded else None
    # A recorded choice that the space has lost is one of an older kernel: not an error, there is the ranking.
    return Choice(entry.config, "recorded") if entry and entry.config in space else None


def static_choices(
    requests: Iterable[Request], target: Target, profile: Profile, cache_dir: Path, candidates: int = 0
) -> Iterator[tuple[Request, Entry]]:
    """Yields requests with what the static ranking chooses for them, in order.

    Results are remembered below `cache_dir`: requests whose kernels, costs and device are the same are ranked once.

    Raises:
        CompilerError: no configuration runs without spilling, or a compilation takes too long.
    """
    batch: list[tuple[Request, _Contest]] = []
    symbols: set[str] = set()
    for request in requests:
        contest = _Contest.of(request, target, profile, candidates)
        batch.append((request, contest))
        if contest.remembered(cache_dir) is None:
            symbols |= {variant.symbol for variant in contest.heats[0]}
        if len(symbols) >= _BATCH:
            yield from _decided(batch, target, cache_dir)
            batch, symbols = [], set()
    yield from _decided(batch, target, cache_dir)


@dataclass(frozen=True, slots=True)
class _Contest:
    """The variants that a request can choose from, at the step that stands for its bucket.

    They run in heats: the first of which a variant runs without spilling has the winner.
    """

    heats: tuple[tuple[GpuVariant, ...], ...]
    step: Step
    profile: Profile
    key: str

    @classmethod
    def of(cls, request: Request, target: Target, profile: Profile, candidates: int) -> _Contest:
        _, step = bucket_of(request, profile)
        space = replace(request, step=step).space(profile)
        variants = tuple(dict.fromkeys(request.variant(config) for config in space))
        length = candidates or len(variants)
        heats = tuple(variants[start : start + length] for start in range(0, len(variants), length))
        spec = request.spec
        facts: list[object] = [ranking.VERSION, profile, length]
        for variant in variants:
            values = variant.values
            costs = [cost(values, step, profile) for cost in (spec.grid, spec.work, spec.workspace)]
            facts.append((CompileJob.of(variant, target).key(spec.function), costs))
        return cls(heats, step, profile, hashlib.sha256(repr(facts).encode()).hexdigest())

    def _path(self, cache_dir: Path) -> Path:
        return cache_dir / "gpu" / f"{self.key}.choice"

    def remembered(self, cache_dir: Path) -> Entry | None:
        """Returns an earlier result."""
        try:
            symbol, microseconds = json.loads(self._path(cache_dir).read_bytes())
        except (OSError, ValueError, TypeError):
            return None
        found = [variant.config for heat in self.heats for variant in heat if variant.symbol == symbol]
        return Entry(found[0], STATIC_RANKING, float(microseconds)) if found else None

    def remember(self, cache_dir: Path, variant: GpuVariant, microseconds: float) -> None:
        """Keeps a result."""
        write_atomically(self._path(cache_dir), json.dumps([variant.symbol, microseconds]).encode())


def _decided(
    batch: Sequence[tuple[Request, _Contest]], target: Target, cache_dir: Path
) -> Iterator[tuple[Request, Entry]]:
    undecided = [contest for _, contest in batch if contest.remembered(cache_dir) is None]
    failures: dict[str, CompilerError] = {}
    heat = 0
    while undecided:
        lost = [contest for contest in undecided if heat == len(contest.heats)]
        if lost:
            raise _none_left(lost[0], failures)
        variants = {variant.symbol: variant for contest in undecided for variant in contest.heats[heat]}
        kernels = compile_all(list(variants.values()), target, cache_dir, failures=failures)
        for contest in list(undecided):
            if found := ranking.best(contest.heats[heat], kernels, contest.step, contest.profile):
                variant, prediction = found
                contest.remember(cache_dir, variant, prediction.seconds * 1e6)
                undecided.remove(contest)
        heat += 1
    for request, contest in batch:
        entry = contest.remembered(cache_dir)
        if entry is None:
            raise CompilerError(f"what was chosen for kernel {request.spec.family} vanished from the cache {cache_dir}")
        yield request, entry


def _none_left(contest: _Contest, failures: Mapping[str, CompilerError]) -> CompilerError:
    """Returns the error that no variant can be chosen: the first compilation's, unless some did compile."""
    variants = [variant for heat in contest.heats for variant in heat]
    if failures.keys() >= {variant.symbol for variant in variants}:
        return failures[variants[0].symbol]
    family = f"{variants[0].spec.family} ({variants[0].spec.name(dict(variants[0].constants))})"
    return CompilerError(
        f"none of {len(variants)} configurations of {family} fits {contest.profile.name} without spilling registers",
        hint="give one that does in a tuning table, or leave the target out",
    )


def record_table(
    path: Path,
    requests: Sequence[Request],
    target: Target,
    profile: Profile,
    cache_dir: Path,
    candidates: int = 0,
    advance: Callable[[int], object] = lambda _count: None,
) -> TuningTable:
    """Writes what the static ranking chooses as a table; other entries that `path` has stay.

    Args:
        path: the table, `tuning_table.RECORDED / "<profile>.json"` for one that comes with the kernels.
        requests: what to choose for.
        target: what the kernels are compiled for.
        profile: the device.
        cache_dir: where compiled kernels are kept.
        candidates: how many configurations of a space to try, the most promising first; 0 is all.
        advance: called with the number of requests decided since the last call.
    """
    table = read_table(path, profile) if path.exists() else TuningTable(profile.name)
    several = [request for request in dict.fromkeys(requests) if len(request.space(profile)) > 1]
    for request, entry in static_choices(several, target, profile, cache_dir, candidates):
        table.entries[request.spec.family, request.shape, bucket_of(request, profile)[0]] = entry
        advance(1)
    table.write(path)
    return table
