"""CPU kernels one by one, at SmolLM2's shapes: decode against read bandwidth, prefill against arithmetic.

Weights are 30 layers' worth and used in turn, as in a model, so that a layer finds in the caches what it would find
there. Threads run the same launches side by side without barriers. Every figure is the best of several runs.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import WORK, parser, save
from paiton_kernels.cpu.compile import LEVELS, compile_level
from paiton_kernels.families import FAMILIES
from paiton_kernels.numeric_formats import bf16_bits
from paiton_kernels.spec import Variant

LAYERS = 30
HEADS = {"Q_HEADS": 9, "KV_HEADS": 3, "HEAD_DIM": 64}
REPEATS = 5
MIN_SECONDS = 0.15
PEAKS = {"generic": None, "x86-64-v3": ("peak_avx2", 192), "x86-64-v4": ("peak_avx512", 384)}
PEAKS["x86-64-v4-bf16-vbmi"] = ("peak_bf16", 768)
LINEARS: dict[str, dict[str, Any]] = {
    "qkv": {"N": 960, "K": 576, "INPUT": "NORM", "EPILOGUE": "ROPE", **HEADS},
    "o": {"N": 576, "K": 576, "INPUT": "BF16", "EPILOGUE": "ADD"},
    "gate_up": {"N": 3072, "K": 576, "INPUT": "NORM", "EPILOGUE": "SILU"},
    "down": {"N": 576, "K": 1536, "INPUT": "BF16", "EPILOGUE": "ADD"},
}


def compile_driver(folder: Path) -> ctypes.CDLL:
    """Compiles cpu_kernels.c."""
    library = folder / "cpu_kernels.so"
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"),
        "ZIG_LOCAL_CACHE_DIR": str(folder / "zig"),
    }
    target = ["-target", "x86_64-linux-gnu.2.17", "-mcpu=x86_64_v3"]
    flags = ["-O3", "-shared", "-fPIC", "-nostdlib", "-ffreestanding", *target]
    source = Path(__file__).with_suffix(".c")
    command = [sys.executable, "-m", "ziglang", "cc", *flags, str(source), "-o", str(library)]
    subprocess.run(command, check=True, env=environment)
    return ctypes.CDLL(str(library))


def seconds(threads: int, work: Callable[[int, int], None]) -> float:
    """Returns the seconds of one round of `work(worker, rounds)` on all threads at once: the best of several runs."""

    def run(rounds: int) -> float:
        team = [threading.Thread(target=work, args=(worker, rounds)) for worker in range(threads)]
        start = time.perf_counter()
        for member in team:
            member.start()
        for member in team:
            member.join()
        return time.perf_counter() - start

    rounds = 1
    while (took := run(rounds)) < MIN_SECONDS / 2:
        rounds *= 2
    rounds = max(1, round(rounds * MIN_SECONDS / took))
    return min(run(rounds) for _ in range(REPEATS)) / rounds


class Bench:
    """One level's kernels, and memory for them to work on."""

    def __init__(self, driver: ctypes.CDLL, level: str, threads: int, variants: list[Variant]) -> None:
        self._driver = driver
        self.threads = threads
        handle = os.memfd_create(level)  # stays open: the loader knows libraries by path
        os.write(handle, compile_level(level, variants, WORK / "kernels"))
        self._library = ctypes.CDLL(f"/proc/self/fd/{handle}")
        self._keep: list[NDArray[Any]] = []

    def place(self, array: NDArray[Any]) -> int:
        """Keeps an array alive and returns its address, which is a multiple of 64."""
        memory = np.zeros(array.nbytes + 64, np.uint8)
        offset = -memory.ctypes.data % 64
        memory[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        self._keep.append(memory)
        return int(memory.ctypes.data + offset)

    def time(self, variant: Variant, values: list[dict[str, Any]]) -> float:
        """Returns the seconds that all launches together take; array arguments are placed once."""
        addresses: dict[int, int] = {}
        packed = b""
        scratch = variant.worker_scratch_bytes(512)
        for launch in values:
            own = {
                "worker_scratch": self.place(np.zeros(scratch * self.threads, np.uint8)),
                "worker_scratch_stride": scratch,
            }
            fixed = {name: own[name] for name in own if any(arg.name == name for arg in variant.spec.args)}
            for name, value in launch.items():
                if isinstance(value, np.ndarray):
                    fixed[name] = addresses.setdefault(id(value), 0) or self.place(value)
                    addresses[id(value)] = fixed[name]
                else:
                    fixed[name] = value
            packed += variant.pack(fixed)
        size, count = len(packed) // len(values), len(values)
        function = self._library[variant.symbol]

        def work(worker: int, rounds: int) -> None:
            sizes = (ctypes.c_uint64(size), ctypes.c_uint64(count), ctypes.c_uint64(rounds))
            workers = (ctypes.c_uint32(worker), ctypes.c_uint32(self.threads))
            self._driver.call_all(function, packed, *sizes, *workers)

        result = seconds(self.threads, work)
        self._keep.clear()
        return result


def step_values(tokens: int, position: int = 0) -> dict[str, Any]:
    """Returns the arguments that say which tokens a step has: `tokens` of one request from `position` on."""
    blocks = (position + tokens) // 16 + 1
    return {
        "counts": np.array([tokens, 1, tokens, 0], np.int32),
        "positions": np.arange(position, position + tokens, dtype=np.int32),
        "request_of": np.zeros(tokens, np.int32),
        "block_tables": np.arange(blocks, dtype=np.int32),
        "block_table_stride": blocks,
        "kv": bf16_bits(np.random.default_rng(1).standard_normal(blocks * 2 * 3 * 16 * 64)),
        "kv_block_stride": 2 * 3 * 16 * 64 * 2,
    }


def linear_values(variant: Variant, tokens: int, layers: int) -> list[dict[str, Any]]:
    """Returns a linear kernel's launches, one per layer, each with weights of its own."""
    rng = np.random.default_rng(0)
    n, k, stride = (int(variant.macros[name]) for name in ("N", "K", "ROW_STRIDE"))
    norm = variant.macros["INPUT"] == "NORM"
    x = rng.standard_normal((tokens, k))
    shared: dict[str, Any] = {
        **step_values(tokens),
        "x": x.astype(np.float32) if norm else bf16_bits(x),
        "rows": np.arange(tokens, dtype=np.int32),
        "norm_weight": bf16_bits(np.ones(k)),
        "eps": 1e-5,
        "scale": np.full(n, 1e-3, np.float32),
        "packed": bf16_bits(rng.standard_normal((tokens, 2 * k))),
        "packed_scale": np.ones(tokens, np.float32),
        "out": np.zeros((tokens, n), np.float32),
        "out_stride": n,
        "rope": np.ones((tokens, 64), np.float32),
    }
    if variant.macros["WEIGHT"] == "BF16":
        stored = [bf16_bits(rng.standard_normal((n, stride // 2))) for _ in range(layers)]
    else:
        stored = [rng.integers(0, 126, (n, stride), np.uint8) for _ in range(layers)]
    return [{**shared, "weight": weight} for weight in stored]


def attention_values(tokens: int, position: int) -> list[dict[str, Any]]:
    """Returns attention's launches."""
    q = bf16_bits(np.random.default_rng(2).standard_normal((tokens, 9 * 64)))
    scale = {"softmax_scale": 0.125, "out": np.zeros_like(q)}
    return [{**step_values(tokens, position), "q": q, **scale} for _ in range(LAYERS)]


def variants(weight: str) -> dict[str, Variant]:
    """Returns the kernels to measure, by a name of this benchmark."""
    linear, width = FAMILIES["linear"], 2 if weight == "BF16" else 1
    result = {
        f"{name} {form.lower()}": linear.variant(**shape, WEIGHT=weight, ROW_STRIDE=shape["K"] * width, FORM=form)
        for name, shape in LINEARS.items()
        for form in ("DECODE", "PREFILL")
    }
    head: dict[str, Any] = {"N": 49152, "K": 576, "INPUT": "NORM", "GATHER": 1, "EPILOGUE": "STORE", "FORM": "DECODE"}
    for kind, bytes_each in (("BF16", 2), ("INT8", 1)):
        result[f"head {kind.lower()} decode"] = linear.variant(**head, WEIGHT=kind, ROW_STRIDE=576 * bytes_each)
    result["attention"] = FAMILIES["attention"].variant(**HEADS)
    return result


def read_bandwidth(driver: ctypes.CDLL, size: int, threads: int) -> float:
    """Returns GB/s of plainly reading `size` bytes again and again, each thread its share."""
    data = np.ones(size, np.uint8)
    share = size // threads // 512 * 512

    def work(worker: int, rounds: int) -> None:
        start = ctypes.c_void_p(data.ctypes.data + worker * share)
        driver.read_all(start, ctypes.c_uint64(share), ctypes.c_uint64(rounds))

    return share * threads / seconds(threads, work) / 1e9


def peak_gflops(driver: ctypes.CDLL, level: str, threads: int) -> float | None:
    """Returns GFLOPS of multiply-adds that only touch registers, in the level's widest form."""
    peak = PEAKS[level]
    if peak is None:
        return None
    name, flops = peak
    loops = 100_000
    return (
        loops
        * flops
        * threads
        / seconds(threads, lambda _w, rounds: driver[name](ctypes.c_uint64(loops * rounds)))
        / 1e9
    )


def measure_decode(
    bench: Bench, driver: ctypes.CDLL, kernels: dict[str, Variant], rows: tuple[int, ...]
) -> dict[str, Any]:
    """Decode: GB/s of weights, and the share of what plain reading of as many bytes reaches."""
    result: dict[str, Any] = {}
    for name, variant in kernels.items():
        if not name.endswith("decode"):
            continue
        layers = 1 if name.startswith("head") else LAYERS
        size = layers * int(variant.macros["N"]) * int(variant.macros["ROW_STRIDE"])
        limit = read_bandwidth(driver, size, bench.threads)
        for tokens in rows:
            rate = size / bench.time(variant, linear_values(variant, tokens, layers)) / 1e9
            result[f"{name} x{tokens}"] = {"GB/s": round(rate, 2), "of reading": round(rate / limit, 3)}
            print(
                f"  {name} x{tokens}: {rate:.1f} GB/s, reading {limit:.1f}, ratio {rate / limit:.2f}", file=sys.stderr
            )
    return result


def measure_prefill(bench: Bench, kernels: dict[str, Variant], peak: float | None) -> dict[str, Any]:
    """Prefill of 512 tokens: GFLOPS, and the share of the level's peak."""
    result: dict[str, Any] = {}
    for name, variant in kernels.items():
        if not name.endswith("prefill"):
            continue
        flops = 2.0 * 512 * int(variant.macros["N"]) * int(variant.macros["K"])
        rate = flops / bench.time(variant, linear_values(variant, 512, 1)) / 1e9
        result[name] = {"GFLOPS": round(rate, 1)} | ({"of peak": round(rate / peak, 3)} if peak else {})
        print(f"  {name}: {rate:.1f} GFLOPS, peak {peak or 0:.0f}, ratio {rate / (peak or rate):.2f}", file=sys.stderr)
    return result


def measure_attention(bench: Bench, variant: Variant) -> dict[str, Any]:
    """Attention: microseconds a layer, and GFLOPS of the visible part of both products."""
    result: dict[str, Any] = {}
    for tokens, position in ((1, 255), (1, 2047), (512, 0), (512, 1536)):
        took = bench.time(variant, attention_values(tokens, position)) / LAYERS
        flops = 4.0 * 9 * 64 * sum(range(position + 1, position + tokens + 1))
        result[f"{tokens} tokens from {position}"] = {
            "us": round(took * 1e6, 1),
            "GFLOPS": round(flops / took / 1e9, 1),
        }
        print(
            f"  attention {tokens} from {position}: {took * 1e6:.1f} us, {flops / took / 1e9:.1f} GFLOPS",
            file=sys.stderr,
        )
    return result


def main() -> None:
    """Measures the levels asked for and writes benchmarks/results/cpu_kernels.json."""
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--levels", nargs="+", choices=LEVELS, default=list(LEVELS), help="which code objects to run")
    options.add_argument("--threads", type=int, default=os.cpu_count(), help="threads that share a kernel's work")
    options.add_argument("--weights", choices=("FP8", "INT8", "BF16"), default="FP8", help="how weights are stored")
    options.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8], help="tokens of a decode step")
    args = options.parse_args()
    driver = compile_driver(WORK)
    kernels = variants(args.weights)
    result: dict[str, Any] = {"threads": args.threads, "weights": args.weights, "levels": {}}
    for level in args.levels:
        print(level, file=sys.stderr)
        bench = Bench(driver, level, args.threads, list(kernels.values()))
        peak = peak_gflops(driver, level, args.threads)
        result["levels"][level] = {
            "decode": measure_decode(bench, driver, kernels, tuple(args.rows)),
            "prefill": measure_prefill(bench, kernels, peak),
            "attention": measure_attention(bench, kernels["attention"]),
        }
    save("cpu_kernels", result)


if __name__ == "__main__":
    main()
