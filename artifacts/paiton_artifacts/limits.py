"""Hard limits on what a bundle may contain (artifacts/FORMAT.md, "Limits").

A bundle is untrusted until it is verified, so nothing is allocated, parsed or unrolled on the word of a file alone.
Every limit is an order of magnitude above what the largest model we plan for (405B on 16 ranks) needs.
"""

from __future__ import annotations

MAX_MANIFEST_COMPRESSED = 4 << 20
MAX_MANIFEST_BYTES = 16 << 20
MAX_PLAN_COMPRESSED = 2 << 20
MAX_PLAN_BYTES = 8 << 20
MAX_KERNEL_TABLE_COMPRESSED = 2 << 20
MAX_KERNEL_TABLE_BYTES = 16 << 20

MAX_COMPANION_BYTES = 4 << 20
"""One of the JSON files beside the manifest: signature, SBOM or provenance."""

MAX_JSON_VALUES = 1 << 16
"""Values in one JSON document."""

MAX_JSON_DEPTH = 32
"""Lists and maps inside each other in one JSON document."""

MAX_TRUSTED_KEYS = 64

MAX_MAPS = 1 << 18
"""Maps in one msgpack payload: an empty map is 1 byte on the wire but 64 in memory."""

MAX_ITEMS = 1 << 18
"""Entries of any one list or map."""

MAX_FIELDS = 64
"""Fields of any one map, those of later minor versions included."""

MAX_STRING = 4096
"""Bytes of any one string or key."""

MAX_BINARY = 1 << 20
"""Bytes of any one binary value."""

MAX_PATH = 255
MAX_PATH_COMPONENTS = 4
MAX_NAME = 255
"""Characters of a tensor, symbol, level or target name."""

MAX_FREE_TEXT = 1024
"""Characters of text for people: the model's name, a compiler's version."""

MAX_BYTES = 1 << 48
"""Any size, offset or stride. MAX_REPEAT strides plus an offset and a size stay below 2**63: no reader overflows."""

MAX_RANKS = 64
MAX_LAYERS = 4096
MAX_DIMENSION = 1 << 24
"""Rows, columns, heads, vocabulary entries."""

MAX_TOKENS = 1 << 24
"""Positions, tokens of a step, requests of a step, and blocks of a request."""

MAX_CHUNKS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_PARTS = 1 << 12
MAX_TARGETS = 16
MAX_CODE_OBJECTS = 256
MAX_SYMBOLS = 1 << 12
MAX_PLANS = 1 << 12
MAX_IO_FIELDS = 64
MAX_GOLDENS = 64
MAX_GOLDEN_STEPS = 1 << 12
MAX_GOLDEN_TOP = 256
MAX_EOS_TOKENS = 64
MAX_PROBES = 256
MAX_SPECIAL_TOKENS = 16

MAX_CODE_OBJECT_BYTES = 64 << 20
MAX_CODE_AND_PLANS_BYTES = 256 << 20
"""All code objects and plans of a bundle together."""

MAX_TOKENIZER_BYTES = 64 << 20
MAX_CHAT_TEMPLATE_BYTES = 1 << 20

MAX_SEGMENTS = 256
MAX_REPEAT = 1 << 14
MAX_LAUNCHES = 1 << 14
"""Launches stored in a plan, and in one segment of it."""

MAX_UNROLLED_LAUNCHES = 1 << 20
"""Launches of a plan once every segment is repeated."""

MAX_ARGUMENT_BYTES = 4096
"""Packed arguments of one launch."""

MAX_ARGUMENTS = 128
"""Arguments of one GPU kernel."""

MAX_GRID = (1 << 31) - 1
MAX_GRID_YZ = (1 << 16) - 1
"""Blocks of one launch: along x, and along y and z."""

MAX_THREADS = 1024
"""Threads of one block."""

MAX_SHARED_BYTES = 1 << 18
"""Shared memory of one block."""

MAX_RELOCATIONS = MAX_ARGUMENT_BYTES // 8
"""Relocations of one launch: at most one per 8-byte field."""
