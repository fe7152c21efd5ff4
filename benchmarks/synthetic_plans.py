"""Plans in the shape of large models, for kernels that do not exist: as many launches, arguments and relocations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paiton_artifacts.kernel_table import Kernel, KernelArgument, KernelTable
from paiton_artifacts.layout import CODE_ALIGNMENT, Region, align_up
from paiton_artifacts.plan import FIELD_BYTES, Access, Launch, LaunchFlag, Plan, Relocation, RelocationKind, Segment
from paiton_artifacts.schema import IoField, MemoryPlan

TARGET, PROFILE = "hip:gfx942", "mi300x"
EXTENT = 1 << 30
LAYER_BYTES = 1 << 22
VARIANTS = 4
"""Configurations of a family; neighbouring buckets share one."""


@dataclass(frozen=True, slots=True)
class Family:
    """A kernel family: arguments as its specification lists them, with the compiler's two at the end.

    Attributes:
        name: of the family.
        pointers: arguments of 8 bytes.
        scalars: arguments of 4 bytes.
        relocated: how many of the pointers are not null.
        reduces: also reads every rank's partial result.
    """

    name: str
    pointers: int
    scalars: int
    relocated: int
    reduces: bool = False


FIRST = (Family("rope_table", 6, 0, 4), Family("schedule", 6, 0, 4), Family("embed", 7, 0, 5))
LAYER = (
    Family("norm", 10, 1, 6),
    Family("qkv", 21, 1, 13),
    Family("attention", 16, 1, 11),
    Family("o", 21, 1, 7, reduces=True),
    Family("norm", 10, 1, 6),
    Family("gate_up", 21, 1, 7),
    Family("down", 21, 1, 7, reduces=True),
)
LAST = (Family("norm", 10, 1, 5), Family("lm_head", 21, 1, 6))


@dataclass(frozen=True, slots=True)
class Workload:
    """What a boot has to make graphs of.

    Attributes:
        layers: of the model.
        buckets: of the family "forward".
        ranks: of the tensor-parallel group.
    """

    layers: int
    buckets: int
    ranks: int

    def plans(self) -> list[Plan]:
        """Returns a plan for each bucket."""
        return [
            Plan(
                TARGET,
                PROFILE,
                "forward",
                bucket + 1,
                1,
                (
                    Segment(1, self._launches(FIRST, bucket)),
                    Segment(self.layers, self._launches(LAYER, bucket)),
                    Segment(1, self._launches(LAST, bucket)),
                ),
            )
            for bucket in range(self.buckets)
        ]

    def kernels(self) -> KernelTable:
        """Returns the table of all kernels, whose images are one byte each."""
        families = {family.name: family for family in (*FIRST, *LAYER, *LAST)}
        symbols = sorted(
            (_symbol(family, variant), family) for family in families.values() for variant in range(VARIANTS)
        )
        return KernelTable(TARGET, tuple(self._kernel(i, name, family) for i, (name, family) in enumerate(symbols)))

    def memory(self) -> MemoryPlan:
        """Returns a memory plan with room for every relocation."""
        names = ("counts", "token_ids", "block_tables", "sampled", "sampled_logprob", "sampled_rank", "top_tokens")
        fields = [IoField(name, "i32", 1024, n * 4096) for n, name in enumerate((*names, "top_values"))]
        return MemoryPlan(
            target=TARGET,
            profile=PROFILE,
            compute_units=304,
            weights_bytes=EXTENT,
            io_bytes=EXTENT,
            io_input_bytes=8192,
            scratch_bytes=EXTENT,
            worker_scratch_bytes=0,
            comm_bytes=EXTENT,
            kv_block_tokens=16,
            kv_block_bytes=EXTENT,
            max_tokens=self.buckets,
            max_requests=1,
            max_blocks_per_request=1024,
            logits_offset=0,
            logits_stride=128256,
            io=(
                *fields,
                IoField("semaphores", "i32", 1024, 1 << 16),
                IoField("comm_peers", "u64", self.ranks, 3 << 16),
                IoField("comm_error", "i32", 16, 4 << 16),
            ),
        )

    def _kernel(self, number: int, symbol: str, family: Family) -> Kernel:
        pointers = family.pointers + (self.ranks if family.reduces else 0)
        arguments = [KernelArgument(f"p{i}", "pointer", 8 * i, 8, 16) for i in range(pointers)]
        arguments += [KernelArgument(f"n{i}", "integer", 8 * pointers + 4 * i, 4, 1) for i in range(family.scalars)]
        size = 8 * pointers + 4 * family.scalars
        return Kernel(symbol, number * CODE_ALIGNMENT, 1, 256, 0, size, tuple(arguments), "only")

    def _launches(self, families: Sequence[Family], bucket: int) -> tuple[Launch, ...]:
        return tuple(self._launch(family, number, bucket) for number, family in enumerate(families))

    def _launch(self, family: Family, number: int, bucket: int) -> Launch:
        regions = (Region.IO, Region.WEIGHTS, Region.SCRATCH, Region.KV)
        found = [
            Relocation(8 * i, RelocationKind.LOCAL, region, Access.READ, 0, 4096 * (number + i), stride, 4096)
            for i in range(family.relocated)
            for region in (regions[i % len(regions)],)
            for stride in (LAYER_BYTES if region in (Region.WEIGHTS, Region.KV) else 0,)
        ]
        peers = self.ranks if family.reduces else 0
        first = family.pointers
        found += [
            Relocation(8 * (first + peer), RelocationKind.PEER, Region.COMM, Access.READ, peer, 4096 * number, 0, 4096)
            for peer in range(peers)
        ]
        size = align_up(8 * (first + peers) + 4 * family.scalars, FIELD_BYTES)
        symbol = _symbol(family, bucket * VARIANTS // self.buckets)
        return Launch(symbol, LaunchFlag.NONE, bytes(size), tuple(found), (bucket % 64 + 1, 8, 1))


def _symbol(family: Family, variant: int) -> str:
    return f"{family.name}_variant{variant}"


LARGE = Workload(layers=126, buckets=64, ranks=8)
"""Llama 3.1 405B on eight devices."""

SMALL = Workload(layers=32, buckets=32, ranks=1)
"""Llama 3.1 8B on one device."""

WORKLOADS = {"large": LARGE, "small": SMALL}
