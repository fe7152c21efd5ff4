"""Runs the AMDGCN assembly that Triton emits for gfx942 and gfx950 (CDNA3, CDNA4) on the CPU.

Every unknown instruction, access outside an allocation, use of a register that was never written and endless loop
raises `EmulationError`. What is not emulated: time, waiting for memory (it is immediate), caches (memory is
coherent), roundings inside matrix instructions, and the last bit of transcendental functions (exact here, within
1 unit on hardware).
"""

from __future__ import annotations

from tests.emulated.cdna.errors import EmulationError
from tests.emulated.cdna.kernel import Kernel
from tests.emulated.cdna.memory import DeviceMemory, DevicePointer

__all__ = ["DeviceMemory", "DevicePointer", "EmulationError", "Kernel"]
