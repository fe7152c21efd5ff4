"""Boots a bundle on GPUs: arena, weights on their way, modules, KV cache, graphs; nothing compiled, nothing captured.

The weights are copied by threads of the host library from the moment the arena exists, while plans are read, modules
loaded and graphs built; the graphs in the order of their sizes, so that those of decoding are there first. Everything
is sized before anything is allocated: the memory plan says what the regions take, a stated reserve covers what the
driver takes by itself, and the KV cache gets what is left. The ledger shows how the reserve compares with what the
driver really took.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from paiton_artifacts.errors import UnsupportedHostError
from paiton_artifacts.kernel_table import Kernel
from paiton_artifacts.plan import FAMILIES, Plan
from paiton_artifacts.reader import Bundle
from paiton_artifacts.schema import PlanFile
from paiton_runtime.boot import BootOptions, WeightsLoad, check_goldens, require_families
from paiton_runtime.budget import DeviceMemory, driver_reserve, plan_device_budget
from paiton_runtime.drivers.device_library import DeviceLibrary
from paiton_runtime.drivers.gpu import Executor, GpuDriver
from paiton_runtime.ledger import Ledger
from paiton_runtime.model import Buckets, Model
from paiton_runtime.targets import DeviceChoice

MIB = 1 << 20

BROKEN_GRAPHS: dict[str, str] = {}
"""Why graphs of a driver are not used, by the prefix of its version, e.g. "HIP 6.1". Graph replay of some ROCm releases
is reported to read stale inputs, but none that names a version has been confirmed here: an entry needs a source."""


def boot_on_devices(bundle: Bundle, choice: DeviceChoice, options: BootOptions, ledger: Ledger) -> Model:
    """Boots an opened bundle on devices that were chosen for it.

    Raises:
        VerificationError: a file, plan, code object or golden is not what the manifest says.
        OutOfMemoryError: the memory plan does not fit; nothing has been allocated.
        DriverError: the driver refused something.
    """
    manifest, library, memory = bundle.manifest, choice.library, choice.memory
    loading: WeightsLoad | None = None
    driver: GpuDriver | None = None
    try:
        with ledger.stage("device") as row:
            device = choice.devices[0]
            executor = choose_executor(library, options.executor)
            ordinals = [device.ordinal for device in choice.devices]
            driver = GpuDriver(library, ordinals, memory, executor)
            row.note = f"{device.target} {memory.profile}, {manifest.tp} rank(s), {library.version()}, {executor}"
        free, total = driver.free_memory()
        available = DeviceMemory(free, total, options.gpu_memory_utilization)
        with ledger.stage("memory profiling") as row:
            plans = bundle.plan_files(memory.target, memory.profile)
            require_families(plans, memory.target)
            reserve = driver_reserve(len(plans) if executor == "graph" else 0)
            budget = plan_device_budget(memory, manifest.model.max_model_len, options.kv_tokens, available, reserve)
            driver.reserve()
            for blob in manifest.blobs:
                with bundle.open_blob(blob.rank) as descriptor:
                    chunks = blob.chunks if options.verify_weights else ()
                    driver.open_weights(descriptor, blob.size, str(bundle.blob_path(blob.rank)), chunks)
            loading = WeightsLoad(driver, ledger, bundle)
            driver.allocate(budget.sizes)
            row.bytes = budget.total
            tokens = budget.kv_blocks * memory.kv_block_tokens
            row.note = f"{len(plans)} plans, KV cache of {tokens} tokens, no profiling run"
        families = _build(bundle, driver, plans, choice, ledger, free - budget.total)
        level = memory.target.partition(":")[2]
        model = Model(manifest, memory, driver, families, level=level, ledger=ledger, kv_blocks=budget.kv_blocks)
        loading.finish()
        with ledger.stage("warm-up") as row:
            row.note = f"{model.steps} steps before the first request"
        check_goldens(model, options.golden_check)
    except BaseException:
        if loading is not None:
            loading.abandon()
        if driver is not None:
            driver.close()
        raise
    ledger.mark("total")
    return model


def choose_executor(library: DeviceLibrary, wanted: str) -> Executor:
    """Returns how plans are run: as asked, else graphs where the driver's version is known to replay them rightly.

    Raises:
        UnsupportedHostError: graphs were asked for and this driver's are known to be wrong.
    """
    reason = broken_graphs(library)
    if wanted == "graph":
        if reason:
            raise UnsupportedHostError(f"graphs of {library.version()} {reason}", hint="use --executor launch")
        return "graph"
    if wanted == "serial":
        return "serial"
    return "launch" if wanted == "launch" or reason else "graph"


def broken_graphs(library: DeviceLibrary) -> str:
    """Returns why graphs of a driver are not to be used, or "" where nothing is known against them."""
    version = library.version()
    for prefix, reason in BROKEN_GRAPHS.items():
        if version.startswith(prefix):
            return reason
    return ""


def _build(
    bundle: Bundle, driver: GpuDriver, plans: Sequence[PlanFile], choice: DeviceChoice, ledger: Ledger, left: int
) -> dict[str, Buckets]:
    """Reads plans, loads code and builds graphs; `left` is what the plan leaves of the device's memory."""
    target = choice.memory.target
    with ledger.stage("graph compilation") as row:
        (code,) = bundle.code_objects(target).values()
        archive = bundle.read_file(code.file)
        kernels = bundle.kernels(target)
        driver.load_kernels(archive, kernels)
        ordered = sorted(plans, key=lambda plan: (plan.tokens, plan.requests, FAMILIES.index(plan.family)))
        families: dict[str, Buckets] = {}
        for graph in driver.build_all(_read(bundle, ordered, kernels)):
            family = families.setdefault(graph.plan.family, Buckets([], []))
            family.sizes.append((graph.plan.tokens, graph.plan.requests))
            family.graphs.append(graph)
        launches = sum(graph.launches for family in families.values() for graph in family.graphs)
        unplanned = max(0, left - driver.free_memory()[0])
        row.bytes = len(archive)
        row.note = (
            f"{len(plans)} plans, {launches} launches a rank, {len(kernels)} kernels loaded, none compiled;"
            f" the driver took {unplanned / MIB:.0f} MiB"
        )
    return families


def _read(bundle: Bundle, plans: Sequence[PlanFile], kernels: dict[str, Kernel]) -> Iterator[Plan]:
    for entry in plans:
        yield bundle.load_plan(entry, kernels)
