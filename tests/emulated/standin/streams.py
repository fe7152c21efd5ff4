"""Devices, streams and events behind a stand-in.

Streams are lazy: what a stream is given happens when somebody waits for it, one operation after the other. So a test
sees at once what a real device shows rarely: a host buffer that is read or reused before a copy is done, a missing
wait between streams, a node that lacks an edge.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any, TypeVar

from tests.emulated.cdna import DeviceMemory, EmulationError
from tests.emulated.standin.objects import (
    ILLEGAL_ADDRESS,
    INVALID_CONTEXT,
    INVALID_DEVICE,
    INVALID_HANDLE,
    LAUNCH_FAILURE,
    NOT_READY,
    Device,
    DeviceModel,
    Event,
    Function,
    Node,
    RefusedError,
    Stream,
)

DEVICE_SPAN = 1 << 40
"""Address space of a device; their memories lie apart, so that a pointer tells whose it is."""

_TURN_SECONDS = 0.0005
"""How long a kernel that polls leaves the interpreter to others."""

_Thing = TypeVar("_Thing")


class Streams:
    """Devices, their streams and events, and the handles of everything.

    Args:
        models: one per device.
        implicit_device: a thread that chose no device has the first one.

    Attributes:
        lock: to be held during every call.
        refusals: every call that did not succeed, and why, in words.
    """

    def __init__(self, models: Sequence[DeviceModel], *, implicit_device: bool) -> None:
        self.lock = threading.RLock()
        self.refusals: list[str] = []
        self.devices: list[Device] = []
        for ordinal, model in enumerate(models):
            base = 0x7E00_0000_0000 + ordinal * DEVICE_SPAN
            memory = DeviceMemory(model.memory_bytes, base, f"device {ordinal}")
            device = Device(ordinal, model, memory)
            device.streams.append(Stream(device))
            self.devices.append(device)
        self._objects: dict[int, Any] = {}
        self._next_handle = 0x1000
        self._current: dict[int, int] = {}
        self._implicit_device = implicit_device

    # Handles

    def new(self, thing: object) -> int:
        """Returns a handle that no object had before."""
        self._next_handle += 16
        self._objects[self._next_handle] = thing
        return self._next_handle

    def get(self, handle: int, kind: type[_Thing]) -> _Thing:
        """Returns the object of a handle."""
        thing = self._objects.get(handle)
        if not isinstance(thing, kind):
            raise RefusedError(INVALID_HANDLE, f"{handle:#x} is no {kind.__name__}, or one that was destroyed")
        return thing

    def delete(self, handle: int, kind: type[_Thing]) -> _Thing:
        """Forgets a handle."""
        thing = self.get(handle, kind)
        del self._objects[handle]
        return thing

    def leaks(self) -> list[str]:
        """Returns what was created and neither freed nor destroyed."""
        dependent = (Function, Node)  # they go with their module or graph
        return [type(thing).__name__ for thing in self._objects.values() if not isinstance(thing, dependent)]

    # Devices and streams

    def show(self, ordinals: Sequence[int]) -> None:
        """Hides all devices but these, numbered anew in this order; the list ends at one that is not there."""
        shown = []
        for ordinal in ordinals:
            if ordinal >= len(self.devices):
                break
            shown.append(self.devices[ordinal])
        self.devices = shown
        for number, device in enumerate(shown):
            device.ordinal = number

    def device(self, ordinal: int) -> Device:
        """Returns a device."""
        if not 0 <= ordinal < len(self.devices):
            raise RefusedError(INVALID_DEVICE, f"there is no device {ordinal}")
        return self.devices[ordinal]

    @property
    def current(self) -> Device:
        """The calling thread's device, unless a kernel has crashed there."""
        device = self.chosen()
        if device.fault:
            raise device.fault
        return device

    def chosen(self) -> Device:
        """Returns the calling thread's device."""
        ordinal = self._current.get(threading.get_ident(), 0 if self._implicit_device else None)
        if ordinal is None:
            raise RefusedError(INVALID_CONTEXT, "this thread has chosen no device")
        return self.device(ordinal)

    def set_device(self, ordinal: int) -> None:
        """Chooses the calling thread's device."""
        self._current[threading.get_ident()] = self.device(ordinal).ordinal

    def stream(self, handle: int) -> Stream:
        """Returns a stream; 0 is the null stream of the calling thread's device."""
        stream = self.get(handle, Stream) if handle else self.current.null_stream
        if stream.device.fault:
            raise stream.device.fault
        return stream

    def create_stream(self) -> int:
        """Returns a stream of the calling thread's device."""
        stream = Stream(self.current)
        stream.device.streams.append(stream)
        return self.new(stream)

    def destroy_stream(self, handle: int) -> None:
        """Destroys a stream once it is done."""
        stream = self.delete(handle, Stream)
        self.drain(stream)
        stream.device.streams.remove(stream)

    def drain(self, stream: Stream, until: Event | None = None) -> None:
        """Lets a stream happen, up to the last record of an event or to its end."""
        stream.refuse_in_capture("a stream was waited for while it was being captured")
        while stream.pending and not (until and until.happened == until.wanted):
            self.step(stream)

    def step(self, stream: Stream) -> None:
        """Lets the next operation of a stream happen."""
        device = stream.device
        while device.stalled:
            self.let_others()
        if device.fault is None:
            try:
                stream.pending.popleft()()
            except EmulationError as error:
                code = ILLEGAL_ADDRESS if "allocation" in str(error) or "bounds" in str(error) else LAUNCH_FAILURE
                device.fault = RefusedError(code, f"a kernel crashed: {error}")
            except RefusedError as error:
                device.fault = error
        if device.fault:
            for other in device.streams:
                other.pending.clear()
            raise device.fault

    def let_others(self) -> None:
        """Lets other threads call the driver, while a kernel waits for what they start on other devices."""
        self.lock.release()
        time.sleep(_TURN_SECONDS)
        self.lock.acquire()

    def synchronise(self, device: Device) -> None:
        """Lets everything on a device happen."""
        for stream in list(device.streams):
            self.drain(stream)

    # Events

    def record(self, event: Event, stream: Stream) -> None:
        """Makes an event happen when a stream comes to this point."""
        serial = event.wanted + 1

        def happen() -> None:
            event.happened, event.seconds = serial, time.perf_counter()

        stream.give(happen)
        event.wanted, event.stream = serial, stream

    def wait(self, event: Event) -> None:
        """Waits for the last record of an event."""
        if event.stream is not None:
            self.drain(event.stream, event)

    def done(self, event: Event) -> bool:
        """Returns whether an event has happened; time goes on by one operation at each question."""
        if event.happened != event.wanted and event.stream is not None and event.stream.pending:
            self.step(event.stream)
        return event.happened == event.wanted

    def elapsed_milliseconds(self, start: Event, end: Event) -> float:
        """Returns the time between two events."""
        for event in (start, end):
            if not event.timing or not event.wanted:
                raise RefusedError(INVALID_HANDLE, "an event was not created for timing, or never recorded")
            if event.happened != event.wanted:
                raise RefusedError(NOT_READY, "an event has not happened yet")
        return (end.seconds - start.seconds) * 1e3

    def forget(self) -> None:
        """Forgets every handle, as the end of a process does."""
        self._objects.clear()
