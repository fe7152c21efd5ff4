"""What fits into memory, decided from the bundle's memory plan before anything is allocated.

The rule for the KV cache without `--kv-tokens`: as many blocks as all requests of the largest bucket need at full
context, but at most half of the memory that the rest of the plan leaves, and at least one request at full context.
"""

from __future__ import annotations

import resource
from pathlib import PurePosixPath

from paiton_artifacts.errors import OutOfMemoryError, UsageError
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import MemoryPlan

DEFAULT_UTILIZATION = 0.9
"""Share of a device's memory that a process may use, unless it is told otherwise; vLLM's default."""

GRAPH_BYTES = 24 << 20
"""What a driver was reported to take for one executable graph; kept free for each of them."""

UNPLANNED_BYTES = 256 << 20
"""Kept free for what else a driver allocates by itself (context, printf buffers, stacks)."""

_CGROUP = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True)
class RegionSizes:
    """Bytes of every region of one rank, but weights, which are a file."""

    io: int  # shared by all ranks
    scratch: int
    kv: int
    comm: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The settled plan: regions per rank, KV blocks, and bytes over all ranks, weights included."""

    sizes: RegionSizes
    kv_blocks: int
    total: int


def plan_budget(
    memory: MemoryPlan, *, tp: int, workers: int, max_model_len: int, kv_tokens: int | None, available: int
) -> Budget:
    """Settles the size of every region.

    Args:
        memory: the bundle's plan for one rank.
        tp: ranks, all on this machine.
        workers: threads per rank, each with a scratch area of its own.
        max_model_len: tokens of context that a request may have.
        kv_tokens: tokens that the KV cache shall hold, rounded up to whole blocks; None applies the rule above.
        available: bytes that this process may use.

    Raises:
        OutOfMemoryError: the plan does not fit; the message has its numbers.
        UsageError: `kv_tokens` is not positive.
    """
    scratch = memory.scratch_bytes + workers * memory.worker_scratch_bytes
    fixed = memory.io_bytes + tp * (memory.weights_bytes + scratch + memory.comm_bytes)
    room = (available - fixed) // (tp * memory.kv_block_bytes)  # blocks
    one_request = -(-max_model_len // memory.kv_block_tokens)
    if kv_tokens is None:
        blocks = max(one_request, min(one_request * memory.max_requests, room // 2))
    elif kv_tokens > 0:
        blocks = -(-kv_tokens // memory.kv_block_tokens)
    else:
        raise UsageError(f"a KV cache of {kv_tokens} tokens holds nothing", hint="give --kv-tokens a positive number")
    kv = blocks * memory.kv_block_bytes
    if blocks > room:
        fits = max(0, room) * memory.kv_block_tokens
        raise OutOfMemoryError(
            f"the plan needs {fixed + tp * kv:,} bytes (weights {tp * memory.weights_bytes:,}, "
            f"scratch, comm and io {fixed - tp * memory.weights_bytes:,}, KV cache of "
            f"{blocks * memory.kv_block_tokens:,} tokens {tp * kv:,}) and {available:,} are available",
            hint=f"--kv-tokens {fits} would fit" if fits else "free memory, raise the limits, or use a smaller model",
        )
    return Budget(RegionSizes(memory.io_bytes, scratch, kv, memory.comm_bytes), blocks, fixed + tp * kv)


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a device has: bytes free and in total, and the share of the total that this process may use."""

    free: int
    total: int
    utilization: float

    @property
    def usable(self) -> int:
        """Bytes that this process may still take."""
        return max(0, self.free - int(self.total * (1 - self.utilization)))


def driver_reserve(graphs: int) -> int:
    """Returns the bytes to leave to a device's driver, which holds this many executable graphs."""
    return UNPLANNED_BYTES + GRAPH_BYTES * graphs


def device_kv_room(memory: MemoryPlan, usable: int, reserve: int) -> int:
    """Returns how many KV blocks fit a device beside everything else; below 0 where that does not fit itself.

    Args:
        memory: the bundle's plan for one rank, which has the device for itself.
        usable: bytes that may be taken.
        reserve: of them, bytes to leave to the driver.
    """
    return (usable - reserve - memory.fixed_bytes) // memory.kv_block_bytes


def plan_device_budget(
    memory: MemoryPlan, max_model_len: int, kv_tokens: int | None, device: DeviceMemory, reserve: int
) -> Budget:
    """Settles the size of every region of one rank, which has a device for itself.

    Without `kv_tokens` the KV cache takes all that is left, but no more than all requests of the largest bucket need
    at full context.

    Args:
        memory: the bundle's plan.
        max_model_len: tokens of context that a request may have.
        kv_tokens: tokens that the KV cache shall hold, rounded up to whole blocks; None applies the rule above.
        device: what there is.
        reserve: bytes to leave to the driver.

    Raises:
        OutOfMemoryError: the plan does not fit; the message has its numbers.
        UsageError: `kv_tokens` is not positive.
    """
    fixed = memory.fixed_bytes
    room = device_kv_room(memory, device.usable, reserve)
    one_request = -(-max_model_len // memory.kv_block_tokens)
    if kv_tokens is None:
        blocks = max(1, min(one_request * memory.max_requests, room))
    elif kv_tokens > 0:
        blocks = -(-kv_tokens // memory.kv_block_tokens)
    else:
        raise UsageError(f"a KV cache of {kv_tokens} tokens holds nothing", hint="give --kv-tokens a positive number")
    kv = blocks * memory.kv_block_bytes
    if blocks > room:
        fits = max(0, room) * memory.kv_block_tokens
        raise OutOfMemoryError(
            f"the plan needs {fixed + kv + reserve:,} bytes on each device (weights {memory.weights_bytes:,}, "
            f"io, scratch and comm {fixed - memory.weights_bytes:,}, KV cache of "
            f"{blocks * memory.kv_block_tokens:,} tokens {kv:,}, reserved for the driver {reserve:,}) and "
            f"{device.usable:,} of {device.total:,} are available",
            hint=f"--kv-tokens {fits} would fit" if fits else "free device memory, or raise --gpu-memory-utilization",
        )
    return Budget(RegionSizes(memory.io_bytes, memory.scratch_bytes, kv, memory.comm_bytes), blocks, fixed + kv)


def available_memory() -> int:
    """Returns the bytes that this process may still use: free memory and page cache, within cgroup and RLIMIT_AS."""
    limits = [_meminfo("MemAvailable")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        with open("/proc/self/statm", encoding="ascii") as file:
            limits.append(soft - int(file.read().split()[0]) * resource.getpagesize())
    limits += _cgroup_rooms()
    return max(0, min(limits))


def _meminfo(name: str) -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    raise OutOfMemoryError(f"/proc/meminfo has no {name}", hint="Linux 3.14 or newer is needed")


def _cgroup_rooms() -> list[int]:
    """Returns what each enclosing cgroup (version 2) with a memory limit leaves, file pages counted as free."""
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        own = next((PurePosixPath(line[3:].strip()) for line in file if line.startswith("0::")), None)
    rooms = []
    for group in () if own is None else (own, *own.parents):
        folder = f"{_CGROUP}{group}"
        limit = _read(f"{folder}/memory.max")
        if limit.isdigit():
            used = int(_read(f"{folder}/memory.current") or 0)
            stat = dict(line.split() for line in _read(f"{folder}/memory.stat").splitlines())
            rooms.append(int(limit) - used + int(stat.get("file", 0)) - int(stat.get("shmem", 0)))
    return rooms


def _read(path: str) -> str:
    """Returns a small file's text; "" where it does not exist (the root cgroup has no limits, some mounts hide it)."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
