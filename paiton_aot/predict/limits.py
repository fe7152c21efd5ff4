"""What devices reach: published peaks, and the shares of them that published measurements reached.

Nothing here was measured by this project. Sources:

- *peaks*: the vendors' data sheets, in `paiton_kernels.gpu.devices` (MI300X: 5.3 TB/s, 2,615 TFLOPS FP8).
- *memory share*, AMD: 0.68, 3.6 TB/s of 5.3 by aiter's FP8 matrix products of 16 rows on MI300X; the best rows of its
  table for MI355X (`configs/a8w8_bpreshuffle_tuned_gemm.csv`, the shapes of Llama 3.1 405B at tp 8, one row) reach 69 %
  of 8 TB/s as well. NVIDIA: 0.85, what streaming kernels are commonly reported to reach on Hopper.
- *matrix share*, AMD: 0.40, 1,038 of 2,615 TFLOPS, aiter's best block-FP8 product on MI300X (its best rows for MI355X
  reach 54 %). NVIDIA: 0.70, DeepGEMM's best FP8 products on Hopper reach 75-78 %.
- *launch*: 3.8 us a graph node is reported for HIP drivers that dispatch nodes one by one; about 1.5 us on CUDA.
- *link*: xGMI reaches about 48 GB/s in each direction of each of a device's seven links (ROCm/rccl#1210). NVLink 4:
  450 GB/s in each direction over a switch, 80 % of that.
- *one shot*: small all-reduces over eight MI300X take about 5 us (AMD's muiLLM, pull request 6); on eight H100 5.9 us
  (sgl-project/sglang#2904).
- *two shot*: the line nearest to QuickReduce's published figures for eight MI300X (README of mk1-project/quickreduce,
  FP16: 28 us for 2 MiB, 147 us for 16 MiB, 426 us for 64 MiB) has 14.5 us at no bytes and 37 GB/s a link; it is off by
  2, -14 and 9 %.
- *to the device*: 55 GB/s a device, PCIe 5 x16 as commonly measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from paiton_kernels.gpu.devices import Profile, target_named


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device and its links reach.

    Attributes:
        memory_rate: bytes per second out of device memory.
        fp8_rate, bf16_rate: matrix operations per second.
        launch: seconds that a launch takes at least, and that pass before its first byte.
        link_rate: bytes per second to one peer, one direction.
        one_shot: seconds of an all-reduce in which every rank sends everything to every rank, without bytes.
        two_shot: likewise where every rank sums a share and spreads it.
        copy_rate: bytes per second from the host's memory to one device.
    """

    memory_rate: float
    fp8_rate: float
    bf16_rate: float
    launch: float
    link_rate: float
    one_shot: float
    two_shot: float
    copy_rate: float = 55e9


def limits_of(profile: Profile) -> Limits:
    """Returns what a device is predicted to reach."""
    if target_named(profile.target).backend == "hip":
        return Limits(
            memory_rate=0.68 * profile.memory_rate,
            fp8_rate=0.40 * profile.fp8_rate,
            bf16_rate=0.40 * profile.bf16_rate,
            launch=3.8e-6,
            link_rate=37e9,
            one_shot=5e-6,
            two_shot=14.5e-6,
        )
    return Limits(
        memory_rate=0.85 * profile.memory_rate,
        fp8_rate=0.70 * profile.fp8_rate,
        bf16_rate=0.70 * profile.bf16_rate,
        launch=1.5e-6,
        link_rate=0.8 * 450e9 / 7,  # a rank's own bandwidth, shared by what it sends to seven peers
        one_shot=5.9e-6,
        two_shot=15e-6,
    )


def all_reduce_seconds(size: int, ranks: int, limits: Limits) -> float:
    """Returns the time of a sum over all ranks: of the two ways to make it, the faster.

    Every pair of ranks has a link of its own, so what a rank sends to its peers goes out side by side. One shot: the
    whole message crosses every link. Two shots: a share of 1/ranks crosses it twice.

    Args:
        size: bytes of the message as it travels.
        ranks: of the group.
        limits: of the devices.
    """
    if ranks == 1:
        return 0.0
    return min(limits.one_shot + size / limits.link_rate, limits.two_shot + 2 * size / ranks / limits.link_rate)


def all_gather_seconds(size: int, limits: Limits) -> float:
    """Returns the time in which every rank gets `size` bytes from every other, over links of their own."""
    return limits.one_shot + size / limits.link_rate
