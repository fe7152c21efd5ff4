"""Devices that reach each other's memory: what ranks that share a model need, and not every machine offers."""

from __future__ import annotations

from collections.abc import Sequence

from paiton_artifacts.errors import UnsupportedHostError
from paiton_runtime.drivers.device_library import DeviceLibrary


def check_peers(library: DeviceLibrary, ordinals: Sequence[int]) -> None:
    """Checks that every device can be let reach the memory of every other one.

    Raises:
        UnsupportedHostError: some cannot; names the topology.
    """
    missing = {
        ordinal: [peer for peer in ordinals if peer != ordinal and not library.can_access_peer(ordinal, peer)]
        for ordinal in ordinals
    }
    if not any(missing.values()):
        return
    topology = "; ".join(
        f"{ordinal} does not reach {', '.join(map(str, peers))}" for ordinal, peers in missing.items() if peers
    )
    raise UnsupportedHostError(
        f"the {len(ordinals)} ranks share a model, but not all of their devices reach each other's memory: {topology}",
        hint="choose connected devices with --device, or ask whoever runs this machine to enable peer access",
    )


def enable_peers(library: DeviceLibrary, ordinal: int, ordinals: Sequence[int]) -> None:
    """Lets kernels of the thread's device, `ordinal`, reach the memory of all the others, now and later."""
    for peer in ordinals:
        if peer != ordinal:
            library.enable_peer_access(peer)
