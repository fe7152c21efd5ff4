"""GPU kernels one by one, at the shapes of Llama 3.1: beside the rate of a copy, and beside PyTorch's FP8 product.

A figure is the median time of a launch within replayed graphs, the gap between two nodes included. Each launch of a
graph has large operands of its own until they add up to more than the device's caches, so that a launch finds there
what it would find in a model. Ratios compare figures of one run. PyTorch's products write bf16, ours f32.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import WORK, parser, save
from benchmarks.gpu_device import LAUNCHES, REPLAYS, ROTATED_BYTES, WARM_UP, Bench
from paiton_kernels.gpu.attention import ATTENTION
from paiton_kernels.gpu.linear import LINEAR
from paiton_kernels.gpu.sample import SAMPLE_CHAIN
from paiton_kernels.gpu.schedule import SCHEDULE, schedule_config
from paiton_kernels.gpu.spec import Constant, Step
from paiton_kernels.spec import KV_BLOCK_TOKENS
from tests.gpu.launcher import NoGpuError, open_gpu
from tests.gpu.sampling import Wish, sampling_arrays

UNSUPPORTED = 3
"""Exit code without a GPU."""

LINEARS = {
    "8B qkv": (6144, 4096),
    "8B o": (4096, 4096),
    "8B gate_up": (28672, 4096),
    "8B down": (4096, 14336),
    "405B/8 qkv": (2304, 16384),
    "405B/8 o": (16384, 2048),
    "405B/8 gate_up": (13312, 16384),
    "405B/8 down": (16384, 6656),
}
"""N and K: of the whole 8B model, and of one of eight ranks of 405B."""

DECODE_ROWS = (1, 4, 16)
PREFILL_ROWS = 2048
Q_HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
ATTENTION_SHAPES = ((1, 8192), (32, 1024), (32, 8192), (128, 2048))
"""Requests, and positions that each attends to."""

VOCAB, SAMPLED_ROWS = 128256, 32
WISHES = {"greedy": Wish(0.0), "temperature": Wish(0.8), "top-p": Wish(0.8, top_p=0.95), "top-k": Wish(0.8, top_k=50)}

PATTERN_BYTES = 1 << 24
"""Random content that large operands repeat."""

Figures = dict[str, Any]


def digits(value: float) -> float:
    """Returns a value with four digits."""
    return float(f"{value:.4g}")


@cache
def pattern(storage: str) -> NDArray[Any]:
    """Returns normally distributed values as FP8 (codes of e4m3fn, without NaN and negative zero) or BF16."""
    values = np.random.default_rng(0).standard_normal(PATTERN_BYTES // (1 if storage == "FP8" else 2))
    if storage == "BF16":
        return values.astype(ml_dtypes.bfloat16)
    codes = (values * 16).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    codes[(codes & 0x7F == 0x7F) | (codes == 0x80)] = 0
    return codes


def bytes_of(storage: str) -> int:
    """Returns the bytes of an element."""
    return 1 if storage == "FP8" else 2


class Report:
    """Figures as they come, shown on stderr.

    Args:
        copy_rate: bytes per second of a copy.
    """

    def __init__(self, copy_rate: float) -> None:
        self.copy_rate = copy_rate
        self.sections: dict[str, dict[str, Figures]] = {}

    def add(self, section: str, name: str, figures: Figures) -> None:
        """Keeps figures and shows them."""
        self.sections.setdefault(section, {})[name] = figures
        shown = ", ".join(f"{value} {unit}" for unit, value in figures.items())
        print(f"  {section} {name}: {shown}", file=sys.stderr)

    def moved(self, took: float, size: int) -> Figures:
        """Returns the figures of a launch that must move `size` bytes."""
        rate = size / took
        return {"us": digits(took * 1e6), "GB/s": digits(rate / 1e9), "of copy": digits(rate / self.copy_rate)}


def linear_seconds(bench: Bench, n: int, k: int, rows: int, storage: str) -> float:
    """Returns the seconds of a product of `rows` activations with a weight matrix, both stored alike."""
    fp8, step = storage == "FP8", Step(rows, 1)
    constants: dict[str, Constant] = dict.fromkeys(("AMAX", "Q_HEADS", "KV_HEADS", "HEAD_DIM"), 0)
    constants |= {"N": n, "K": k, "ROW_STRIDE": k, "ROWS": "TOKENS", "A": storage, "A_SCALE": "ROW" if fp8 else "NONE"}
    constants |= {"WEIGHT": storage, "EPILOGUE": "STORE", "OUT": "FP32", "KV": "BF16"}
    variant, content = bench.variant(LINEAR, step, constants), pattern(storage)
    with bench.scope():
        values = {
            "counts": bench.place(np.array([rows, 1, 1, 0], np.int32)),
            "a": bench.place(content, rows * k * bytes_of(storage)),
            "out": bench.allocate(4 * rows * n),
            "out_stride": n,
            "block_table_stride": 0,
            "kv_block_stride": 0,
            "norm_eps": 0.0,
            **bench.scratch(step, variant),
        }
        if fp8:
            sizes = {"a_scale": rows, "scale": n}
            values |= {name: bench.place(np.full(size, 1e-3, np.float32)) for name, size in sizes.items()}
        weights = bench.rotated(content, n * k * bytes_of(storage))
        return bench.seconds([[bench.launch(variant, step, {**values, "weight": weight})] for weight in weights])


def measure_decode(bench: Bench, report: Report, storage: str) -> None:
    """Measures products with few rows, against a copy's rate."""
    for name, (n, k) in LINEARS.items():
        for rows in DECODE_ROWS:
            size = bytes_of(storage) * k * (n + rows) + 4 * n * rows
            figures = report.moved(linear_seconds(bench, n, k, rows, storage), size)
            report.add("decode linear", f"{name} x{rows}", figures)


def torch_seconds(torch: Any, calls: Sequence[Callable[[], object]]) -> float:  # noqa: ANN401
    """Returns the median seconds of one of PyTorch's calls, in turn in one stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    rounds = math.ceil(LAUNCHES / len(calls))
    samples: list[float] = []
    for _ in range(WARM_UP + REPLAYS):
        start.record()
        for _ in range(rounds):
            for call in calls:
                call()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3 / (rounds * len(calls)))
    return statistics.median(samples[WARM_UP:])


def torch_product_seconds(torch: Any, bench: Bench, n: int, k: int, storage: str) -> float:  # noqa: ANN401
    """Returns the seconds of PyTorch's product of the same shape: _scaled_mm with row scales, or a bf16 matmul."""
    kind = torch.bfloat16
    if storage == "FP8":
        kind = torch.float8_e4m3fnuz if bench.gpu.target.fp8_unit == 2 else torch.float8_e4m3fn
    a = torch.randn(PREFILL_ROWS, k, device="cuda").to(kind)
    first = torch.randn(n, k, device="cuda").to(kind)
    count = max(2, math.ceil(ROTATED_BYTES / (n * k * bytes_of(storage))))
    weights = [first, *(first.clone() for _ in range(count - 1))]
    if storage == "BF16":
        return torch_seconds(torch, [partial(torch.matmul, a, weight.T) for weight in weights])
    scales = {
        "scale_a": torch.ones(PREFILL_ROWS, 1, device="cuda"),
        "scale_b": torch.ones(1, n, device="cuda"),
    }

    def product(weight: Any) -> object:  # noqa: ANN401
        return torch._scaled_mm(a, weight.T, **scales, out_dtype=torch.bfloat16)  # noqa: SLF001

    return torch_seconds(torch, [partial(product, weight) for weight in weights])


def measure_prefill(bench: Bench, report: Report, storage: str, torch: Any) -> None:  # noqa: ANN401
    """Measures products with many rows, against PyTorch's if it is there."""
    for name, (n, k) in LINEARS.items():
        operations = 2 * PREFILL_ROWS * n * k
        took = linear_seconds(bench, n, k, PREFILL_ROWS, storage)
        figures: Figures = {"us": digits(took * 1e6), "TFLOPS": digits(operations / took / 1e12)}
        if torch is not None:
            try:
                theirs = torch_product_seconds(torch, bench, n, k, storage)
                figures |= {"torch us": digits(theirs * 1e6), "of torch": digits(theirs / took)}
            except RuntimeError as error:  # not every build of PyTorch has FP8 on every device
                figures |= {"torch": str(error).splitlines()[0]}
            torch.cuda.empty_cache()
        report.add("prefill linear", f"{name} x{PREFILL_ROWS}", figures)


def measure_attention(bench: Bench, report: Report, storage: str) -> None:
    """Measures decode attention and its work list, against a copy's rate."""
    heads: dict[str, Constant] = {"Q_HEADS": Q_HEADS, "KV_HEADS": KV_HEADS}
    constants = {**heads, "HEAD_DIM": HEAD_DIM, "KV": storage, "OUT": "BF16", "AMAX": 0}
    block_bytes = 2 * KV_HEADS * KV_BLOCK_TOKENS * HEAD_DIM * bytes_of(storage)
    random = np.random.default_rng(0)
    for requests, context in ATTENTION_SHAPES:
        step = Step(requests, requests, context)
        variant = bench.variant(ATTENTION, step, constants)
        schedule = SCHEDULE.variant(schedule_config(variant.config), **heads)
        table = random.permutation(requests * context // KV_BLOCK_TOKENS).astype(np.int32)
        q = random.standard_normal((requests, Q_HEADS * HEAD_DIM)).astype(ml_dtypes.bfloat16)
        with bench.scope():
            values: dict[str, int | float] = {
                "counts": bench.place(np.array([requests, requests, requests, 0], np.int32)),
                "query_start": bench.place(np.arange(requests + 1, dtype=np.int32)),
                "positions": bench.place(np.full(requests, context - 1, np.int32)),
                "q": bench.place(q),
                "block_tables": bench.place(table),
                "out": bench.allocate(q.nbytes),
                "block_table_stride": context // KV_BLOCK_TOKENS,
                "kv_block_stride": block_bytes,
                "softmax_scale": HEAD_DIM**-0.5,
                **bench.scratch(step, schedule, variant),
            }
            if storage == "FP8":
                values |= {name: bench.place(np.full(1, 1 / 16, np.float32)) for name in ("k_scale", "v_scale")}
            histories = bench.rotated(pattern(storage), table.size * block_bytes)
            plan = bench.launch(schedule, step, values)
            bench.gpu.run(plan)
            took = bench.seconds([[bench.launch(variant, step, {**values, "kv": kv})] for kv in histories])
            figures = report.moved(took, table.size * block_bytes)
            figures["schedule us"] = digits(bench.seconds([[plan]]) * 1e6)
        report.add("decode attention", f"{storage.lower()} {requests} x {context}", figures)


def measure_sampling(bench: Bench, report: Report) -> None:
    """Measures the chain of launches that samples, against reading the logits once at a copy's rate."""
    step = Step(SAMPLED_ROWS, SAMPLED_ROWS)
    logits = (np.random.default_rng(0).standard_normal((SAMPLED_ROWS, VOCAB)) * 3).astype(np.float32)
    variants = [bench.variant(spec, step, {"VOCAB": VOCAB}) for spec in SAMPLE_CHAIN]
    for name, wish in WISHES.items():
        arrays = sampling_arrays(logits, [wish] * SAMPLED_ROWS)
        del arrays["logits"]
        with bench.scope():
            values = {argument: bench.place(array) for argument, array in arrays.items()}
            values |= {"logits_stride": VOCAB, **bench.scratch(step, *variants)}
            rounds = [
                [bench.launch(variant, step, {**values, "logits": address}) for variant in variants]
                for address in bench.rotated(logits, logits.nbytes)
            ]
            report.add(
                "sampling", f"{name} {SAMPLED_ROWS} x {VOCAB}", report.moved(bench.seconds(rounds), logits.nbytes)
            )


def peer() -> tuple[Any, str]:
    """Returns PyTorch if it can use the GPU, else None; and its version or what is wrong."""
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        return None, "not installed"
    if not torch.cuda.is_available():
        return None, f"{torch.__version__} has no support for this GPU"
    return torch, torch.__version__


def measure(bench: Bench) -> tuple[dict[str, str], dict[str, Any]]:
    """Returns what the GPU is, and all figures."""
    gpu = bench.gpu
    storages = ("FP8", "BF16") if gpu.target.fp8 else ("BF16",)
    torch, torch_version = peer()
    report = Report(bench.copy_rate())
    report.add("copy", "1 GiB", {"GB/s": digits(report.copy_rate / 1e9)})
    measure_decode(bench, report, storages[0])
    measure_prefill(bench, report, storages[0], torch)
    for storage in storages:
        measure_attention(bench, report, storage)
    measure_sampling(bench, report)
    device = {
        "name": gpu.properties.name,
        "target": gpu.target.name,
        "profile": gpu.profile.name,
        "driver": gpu.library.version(),
        "torch": torch_version,
        "weights": storages[0],
    }
    return device, report.sections


def main() -> None:
    """Measures what this machine's GPU can and writes benchmarks/results/gpu_kernels.json; exits with 3 without one."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--tuning-table", type=Path, action="append", default=[], help="measured configurations")
    arguments.add_argument("--candidates", type=int, default=0, help="configurations ranked per kernel, 0 for all")
    options = arguments.parse_args()
    try:
        gpu = open_gpu(WORK / "kernels")
    except NoGpuError as error:
        print(f"gpu_kernels needs a GPU: {error}", file=sys.stderr)
        raise SystemExit(UNSUPPORTED) from error
    with closing(gpu):
        device, sections = measure(Bench(gpu, options.tuning_table, options.candidates))
    save("gpu_kernels", {"device": device, **sections})
