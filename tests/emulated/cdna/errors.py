"""The one exception of the emulator."""

from __future__ import annotations


class EmulationError(Exception):
    """A kernel did what it must not do, or used something that the emulator does not know.

    The message names the instruction, and where there is one the workgroup, wave, lane and address.
    """
