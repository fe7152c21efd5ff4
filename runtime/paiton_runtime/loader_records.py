"""The structures of the weight loader as native/paiton_host.h declares them."""

from __future__ import annotations

import ctypes
from enum import IntEnum

_pointer = ctypes.c_void_p
_u32 = ctypes.c_uint32
_u64 = ctypes.c_uint64

SHA256_BYTES = 32

# `enum paiton_backend`.
HIP = 0
CUDA = 1


class Operation(IntEnum):
    """`enum paiton_load_operation`: what failed."""

    START = 0
    READ = 1
    DIGEST = 2
    SET_DEVICE = 3
    COPY = 4
    RECORD = 5
    WAIT = 6


class CopyFunctions(ctypes.Structure):
    """`struct paiton_copy_functions`."""

    _fields_ = [
        ("backend", _u64),
        ("set_device", _pointer),
        ("copy", _pointer),
        ("record_event", _pointer),
        ("query_event", _pointer),
        ("synchronise_stream", _pointer),
    ]


class Source(ctypes.Structure):
    """`struct paiton_source`."""

    _fields_ = [("fd", ctypes.c_int32), ("direct_fd", ctypes.c_int32), ("cached", _u32), ("zero", _u32)]


class Extent(ctypes.Structure):
    """`struct paiton_extent`."""

    _fields_ = [
        ("offset", _u64),
        ("size", _u64),
        ("address", _u64),
        ("sha256", _pointer),
        ("file", _u32),
        ("zero", _u32),
    ]


class Lane(ctypes.Structure):
    """`struct paiton_lane`."""

    _fields_ = [
        ("extent_first", _u64),
        ("extent_count", _u64),
        ("device", _u64),
        ("streams", ctypes.POINTER(_u64)),
        ("events", ctypes.POINTER(_u64)),
        ("ring", _pointer),
        ("readers", _u32),
        ("zero", _u32),
    ]


class Load(ctypes.Structure):
    """`struct paiton_load`."""

    _fields_ = [
        ("files", ctypes.POINTER(Source)),
        ("extents", ctypes.POINTER(Extent)),
        ("lanes", ctypes.POINTER(Lane)),
        ("driver", ctypes.POINTER(CopyFunctions)),
        ("stop", ctypes.POINTER(ctypes.c_int32)),
        ("extent_count", _u64),
        ("slot_bytes", _u64),
        ("file_count", _u32),
        ("lane_count", _u32),
        ("slots", _u32),
        ("zero", _u32),
    ]


class Result(ctypes.Structure):
    """`struct paiton_load_result`."""

    _fields_ = [
        ("bytes", _u64),
        ("direct_bytes", _u64),
        ("offset", _u64),
        ("file", _u32),
        ("operation", _u32),
        ("code", ctypes.c_int32),
        ("zero", _u32),
        ("sha256", ctypes.c_uint8 * SHA256_BYTES),
    ]
