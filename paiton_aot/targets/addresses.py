"""From references by name to relocations: where weights, io fields, scratch values and KV lie in their regions."""

from __future__ import annotations

from collections.abc import Mapping

from paiton_aot.targets.draft import Comm, Io, Kv, RankTimes, Reference, Scratch, Weight
from paiton_aot.targets.io_layout import extent
from paiton_aot.targets.shape import Shape
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import Access, Relocation, RelocationKind
from paiton_artifacts.schema import MemoryPlan, Tensor


class Addresses:
    """The regions of one memory plan.

    Args:
        tensors: of the weights region, by name.
        memory: sizes of the regions, and the io fields.
        shape: of a rank.
    """

    def __init__(self, tensors: Mapping[str, Tensor], memory: MemoryPlan, shape: Shape) -> None:
        self.tensors = tensors
        self.memory = memory
        self.shape = shape
        self.io = {field.name: field for field in memory.io}

    def relocations(self, places: Mapping[int, Reference], scratch: Mapping[str, int]) -> tuple[Relocation, ...]:
        """Returns the relocations of one launch, by argument offset.

        Args:
            places: what the argument at each byte offset refers to.
            scratch: byte offset of every scratch value of the chain.
        """
        return tuple(self._relocation(offset, reference, scratch) for offset, reference in sorted(places.items()))

    def _relocation(self, arg: int, reference: Reference, scratch: Mapping[str, int]) -> Relocation:
        local = RelocationKind.LOCAL
        match reference:
            case Weight(name):
                tensor = self.tensors[name]
                return Relocation(arg, local, Region.WEIGHTS, Access.READ, 0, tensor.offset, 0, tensor.size)
            case Io(name, access):
                field = self.io[name]
                return Relocation(arg, local, Region.IO, access, 0, field.offset, 0, extent(field))
            case Scratch(value, size, access):
                return Relocation(arg, local, Region.SCRATCH, access, 0, scratch[value], 0, size)
            case Kv(layer, access):
                size = self.shape.kv_layer_bytes
                return Relocation(arg, local, Region.KV, access, 0, layer * size, 0, size)
            case Comm(offset, size, access, rank):
                kind = local if rank is None else RelocationKind.PEER
                return Relocation(arg, kind, Region.COMM, access, rank or 0, offset, 0, size)
            case RankTimes(factor):
                return Relocation(arg, RelocationKind.RANK, Region.WEIGHTS, Access.NONE, 0, factor, 0, 0)
            case _:  # WorkerScratch: the first of the areas, one per worker
                size, access = self.memory.worker_scratch_bytes, Access.READ | Access.WRITE
                return Relocation(arg, local, Region.SCRATCH, access, 0, self.memory.scratch_bytes, 0, size)
