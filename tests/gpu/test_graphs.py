"""A chain of launches as a graph of the driver, against the same launches one by one."""

from __future__ import annotations

import ml_dtypes
import numpy as np

from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.norm import NORM
from paiton_kernels.gpu.spec import Step
from tests.emulated.harness import profile_of
from tests.gpu.harness import best
from tests.gpu.launcher import Gpu
from tests.numerics import assert_same_bits


def test_a_replayed_graph_makes_the_bytes_of_its_launches_from_new_inputs(gpu: Gpu) -> None:
    tokens, hidden, rows = 5, 576, 40
    random = np.random.default_rng(0)
    step, profile, library = Step(8, 1), profile_of(gpu.target), gpu.library
    embed = best(EMBED, gpu.target, step, HIDDEN=hidden, ROW_STRIDE=hidden)
    norm = best(NORM, gpu.target, step, HIDDEN=hidden, ROWS="TOKENS", OUT="BF16", SCALE="NONE", CLEAR=0)
    loaded = [gpu.load(call.spec.variant(call.config, **call.constants)) for call in (embed, norm)]
    grids = [kernel.variant.spec.grid(kernel.variant.values, step, profile) for kernel in loaded]
    with gpu.arrays() as memory:
        counts = memory.place(np.array([tokens, 1, 1, 0], np.int32))
        ids = memory.place(np.zeros(8, np.int32))
        stream = memory.place(np.zeros((8, hidden), np.float32))
        out = memory.place(np.zeros((8, hidden), ml_dtypes.bfloat16))
        table = memory.place(random.standard_normal((rows, hidden)).astype(ml_dtypes.bfloat16))
        weight = memory.place(random.standard_normal(hidden).astype(ml_dtypes.bfloat16))
        last_token = memory.place(np.zeros(1, np.int32))
        lookup: dict[str, int | float] = {
            "counts": counts,
            "token_ids": ids,
            "last_token": last_token,
            "table": table,
            "out": stream,
            "first_row": 0,
        }
        normalise: dict[str, int | float] = {"counts": counts, "x": stream, "weight": weight, "eps": 1e-5, "out": out}
        launches = [gpu.prepare(*each) for each in zip(loaded, grids, (lookup, normalise), strict=True)]
        graph = library.create_graph(launches)
        try:
            library.upload_graph(graph, gpu.stream)
            for _ in range(4):
                memory.write(ids, random.integers(0, rows, 8, np.int32))
                gpu.run(*launches)
                expected = memory.read(out)
                memory.write(out, np.zeros((8, hidden), ml_dtypes.bfloat16))
                memory.write(stream, np.zeros((8, hidden), np.float32))
                library.launch_graph(graph, gpu.stream)
                assert_same_bits(memory.read(out), expected)
                assert np.any(expected[:tokens].astype(np.float32))
        finally:
            library.destroy_graph(graph)
