"""Which of a bundle's targets this machine runs: a GPU that it has and the bundle was built for, else the cpu."""

from __future__ import annotations

from collections.abc import Sequence

from paiton_artifacts.errors import DeviceNotFoundError, UnsupportedHostError, UsageError
from paiton_artifacts.reader import Bundle
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import MemoryPlan
from paiton_runtime.drivers.device_launch import DeviceProperties
from paiton_runtime.drivers.device_library import DeviceLibrary, open_library

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """The devices that run a bundle, and the memory plan whose profile fits them.

    Attributes:
        library: the backend's, initialised.
        devices: one for each rank.
        memory: of the profile with the most compute units that every device has.
    """

    library: DeviceLibrary
    devices: tuple[DeviceProperties, ...]
    memory: MemoryPlan


def choose_devices(bundle: Bundle, target: str | None, ordinals: Sequence[int] | None) -> DeviceChoice | None:
    """Returns the devices to boot on, or None for the cpu.

    Args:
        bundle: what to boot.
        target: the one wished for; None takes a GPU target whose device is here, else the cpu.
        ordinals: devices of the ranks; None takes the first ones.

    Raises:
        UnsupportedTargetError: the bundle was not built for the target.
        DeviceNotFoundError: the driver library or a device is absent.
        UnsupportedHostError: the devices are of another architecture, or smaller than any profile in the bundle.
        UsageError: devices were named for the cpu, or not one for each rank.
    """
    if target == CPU:
        if ordinals is not None:
            raise UsageError("--device names GPUs, but the target is cpu", hint="leave out one of the two")
        return None
    if target is not None:
        bundle.memory(target)
        return _devices_of(bundle, target, ordinals)
    built = dict.fromkeys(memory.target for memory in bundle.manifest.memory if memory.target != CPU)
    for candidate in built:
        try:
            return _devices_of(bundle, candidate, ordinals)
        except (DeviceNotFoundError, UnsupportedHostError):
            if ordinals is not None:
                raise  # somebody knows that there are devices
    if ordinals is not None:
        raise UsageError("--device names GPUs, but the bundle is for the cpu alone", hint="build it with --target")
    return None


def _devices_of(bundle: Bundle, target: str, ordinals: Sequence[int] | None) -> DeviceChoice:
    tp = bundle.manifest.tp
    if ordinals is not None and len(ordinals) != tp:
        raise UsageError(f"{len(ordinals)} device(s) given for {tp} rank(s)", hint="give --device one for each rank")
    library = open_library(target.partition(":")[0])
    library.initialise(ordinals)
    count = library.device_count()
    if count < tp:
        raise DeviceNotFoundError(
            f"the bundle has {tp} rank(s), this machine {count} visible device(s)",
            hint="make more devices visible, or build the bundle with a smaller --tp",
        )
    devices = tuple(library.device(ordinal) for ordinal in range(tp))
    for device in devices:
        if device.target != target:
            built = ", ".join(dict.fromkeys(memory.target for memory in bundle.manifest.memory))
            raise UnsupportedHostError(
                f"device {device.ordinal} ({device.name}) is {device.target}, the bundle has: {built}",
                hint=f"build it with --target {device.target}",
            )
    return DeviceChoice(library, devices, _profile_for(bundle, target, devices))


def _profile_for(bundle: Bundle, target: str, devices: Sequence[DeviceProperties]) -> MemoryPlan:
    """Returns the memory plan of the profile that fills the devices best without asking for more than they have.

    Persistent kernels are launched with as many blocks as the profile's device holds at once, so that of a larger
    device would wait for each other in vain on a smaller one.
    """
    units = min(device.compute_units for device in devices)
    plans = [memory for memory in bundle.manifest.memory if memory.target == target]
    fitting = [memory for memory in plans if memory.compute_units <= units]
    if not fitting:
        built = ", ".join(f"{memory.profile} ({memory.compute_units} compute units)" for memory in plans)
        raise UnsupportedHostError(
            f"device {devices[0].name} has {units} compute units, the plans are for: {built}",
            hint="build the bundle with the --profile of this device",
        )
    return max(fitting, key=lambda memory: memory.compute_units)
