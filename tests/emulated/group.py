"""Ranks of a group on emulated devices: their comm regions, their arguments, and collective launches of all."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paiton_kernels.gpu.comm import CommLayout
from paiton_kernels.gpu.compile import compile_kernel
from paiton_kernels.gpu.devices import Target
from paiton_kernels.gpu.spec import Config, Constant, GpuKernelSpec
from tests.emulated.cdna import DeviceMemory, Kernel
from tests.emulated.cdna.concurrent import Device, Interleaving, Launch
from tests.emulated.cdna.kernel import packed

Arrays = Mapping[str, NDArray[Any]]

_APART = 1 << 40


class Group:
    """The ranks of a group.

    Args:
        target: of all devices.
        layout: of their comm regions.
        max_polls: argument of every launch.

    Attributes:
        devices: one for each rank.
        comm: comm regions, int8[bytes] each.
        errors: error records, int32[4] each.
    """

    def __init__(self, target: Target, layout: CommLayout, max_polls: int = 1_000_000) -> None:
        self.target = target
        self.layout = layout
        self.max_polls = max_polls
        ranks = range(layout.tp)
        memories = [DeviceMemory(base=(rank + 1) * _APART, name=f"rank {rank}") for rank in ranks]
        self.comm = [np.zeros(layout.bytes, np.int8) for _ in ranks]
        self._bases = [memory.map(comm, name="comm") for memory, comm in zip(memories, self.comm, strict=True)]
        self._peers = [np.array(self._bases, np.int64) - base for base in self._bases]
        self.errors = [np.zeros(4, np.int32) for _ in ranks]
        watched = [(base, base + layout.bytes) for base in self._bases]
        self.devices = [Device(memory, watched, []) for memory in memories]
        self._mapped: dict[tuple[int, int], tuple[int, NDArray[Any]]] = {}
        for memory in memories:
            for peer in memories:
                memory.enable_peer(peer)

    def submit(
        self,
        spec: GpuKernelSpec,
        config: Config,
        constants: Mapping[str, Constant],
        arrays: Sequence[Arrays],
        scalars: Mapping[str, float],
        *,
        stalled: Sequence[int] = (),
    ) -> None:
        """Queues a launch on every rank but the stalled ones, on arrays that it works on in place."""
        variant = spec.variant(config, TP=self.layout.tp, BLOCKS=self.layout.blocks, **constants)
        code = compile_kernel(variant, self.target, Path(os.environ["PAITON_CACHE"]))
        kernel = Kernel(code.assembly, self.target.arch)
        types = variant.signature(self.target)
        for rank, device in enumerate(self.devices):
            if rank in stalled:
                continue
            own: Arrays = {"comm_peers": self._peers[rank], "comm_error": self.errors[rank], **arrays[rank]}
            addresses = {name: self._address(rank, array) for name, array in own.items()}
            addresses["comm"] = self._bases[rank]
            values = {"rank": rank, "max_polls": self.max_polls, "channel_bytes": self.layout.channel_bytes, **scalars}
            block = bytearray()
            for arg in spec.args:
                value = addresses.get(arg.name, 0) if arg.pointer else values[arg.name]
                kind = "u64" if arg.pointer else types[arg.name]
                block += packed(value, kind, len(block), {})
            device.launches.append(
                Launch(kernel, bytes(block), self.layout.blocks, config.num_warps, code.shared_bytes)
            )

    def run(self, random: Random, *, delayed: bool = True) -> None:
        """Runs what is queued; some ranks are much slower than others."""
        for device in self.devices:
            device.weight = 0.1 + random.expovariate(1.0)
        Interleaving(self.devices, random, delayed=delayed).run()

    def _address(self, rank: int, array: NDArray[Any]) -> int:
        """Returns where a rank's array is mapped, after mapping it if it is not yet."""
        key = rank, array.ctypes.data
        if key not in self._mapped:
            self._mapped[key] = self.devices[rank].memory.map(array), array  # which lives as long as its mapping
        return self._mapped[key][0]
