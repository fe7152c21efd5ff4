"""The predicted ledger of a boot: which stages there are, and when each starts and ends."""

from __future__ import annotations

from dataclasses import dataclass

from paiton_aot.predict.limits import Limits

STORAGE_RATE = 6.3e9
"""Bytes per second of the published start-ups' weight stage (405 GB in 64.3 s): where no `--storage-gbps` is given."""

OPEN = 0.15
"""Seconds from exec to a verified manifest and its plans: measured by `python -m benchmarks graphs` and `startup`."""

DEVICES = 1.0
"""Seconds until the driver has made its contexts and peers see each other: assumed, nothing citable was found."""

GRAPH = 1 / 256
"""Seconds to instantiate a graph: 256 graphs of a model in 1 s is Foundry's published figure (README, 2026)."""

GOLDEN_TOKENS, GOLDEN_STEPS = 8, 2
"""The golden check of a boot: a prompt, and steps after it."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One line of the ledger, in seconds since exec."""

    name: str
    start: float
    end: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end - self.start


def boot_ledger(
    blob_bytes: int, ranks: int, graphs: int, storage_rate: float, limits: Limits, prompt: float, step: float
) -> list[Stage]:
    """Returns the predicted stages; those that overlap do not sum.

    Args:
        blob_bytes: of one rank.
        ranks: of the group.
        graphs: of one rank.
        storage_rate: bytes per second that all ranks read together.
        limits: of the devices.
        prompt: seconds of a step with the golden check's prompt.
        step: seconds of a step of one token.
    """
    ready = OPEN + DEVICES
    rate = min(storage_rate, ranks * limits.copy_rate)
    weights = ready + blob_bytes * ranks / rate
    built = ready + graphs * ranks * GRAPH
    loaded = max(weights, built)
    checked = loaded + prompt + GOLDEN_STEPS * step
    return [
        Stage("open", 0.0, OPEN),
        Stage("device", OPEN, ready, "assumed"),
        Stage("weights", ready, weights, f"{blob_bytes * ranks / 1e9:.1f} GB at {rate / 1e9:.1f} GB/s"),
        Stage("memory profiling", ready, ready, "the plan is read"),
        Stage("graph compilation", ready, built, f"{graphs} graphs on each of {ranks} ranks, beside the weights"),
        Stage("warm-up", loaded, loaded, "none"),
        Stage("golden check", loaded, checked),
        Stage("total", 0.0, checked),
    ]
