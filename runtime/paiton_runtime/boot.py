"""Boots a bundle: everything between opening it and the first request, each stage a line of the ledger.

Order and overlap: weights are faulted in by threads of the host library while plans are parsed, regions reserved and
code objects loaded. Nothing runs before all plans are inside their regions and the golden check has passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from threading import Thread

from paiton_artifacts.errors import PlanError
from paiton_artifacts.plan import Plan
from paiton_artifacts.reader import Bundle, open_bundle
from paiton_artifacts.record import dataclass
from paiton_artifacts.schema import CodeObject, MemoryPlan, PlanFile
from paiton_runtime.arriving import ArrivingBundle
from paiton_runtime.budget import DEFAULT_UTILIZATION, Budget, available_memory, plan_budget
from paiton_runtime.drivers.base import Driver
from paiton_runtime.drivers.cpu import CpuDriver, team_size
from paiton_runtime.goldens import check_golden
from paiton_runtime.ledger import Ledger, Row
from paiton_runtime.levels import choose_level, cpu_flags
from paiton_runtime.model import Buckets, Model
from paiton_runtime.processes import processes_started

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class BootOptions:
    """What a boot may choose.

    Attributes:
        level: instruction-set level; None takes the best that machine and bundle share.
        threads: threads of the whole process, shared by the ranks, at least one each; None takes one per processor.
        kv_tokens: tokens in the KV cache; None applies the rule of `budget`.
        golden_check: reproduce the recorded logits before the first request.
        pin: bind threads to processors where there are enough of them.
        target: what to boot for; None takes a GPU that is here and that the bundle was built for, unless a level is
            named, else the cpu.
        devices: GPU of each rank; None takes the first ones.
        executor: on GPUs "graph", "launch", "serial" (launch, and wait for each kernel), or "auto" for graphs unless
            the driver's are known to be wrong.
        gpu_memory_utilization: share of a GPU's memory that this process may use.
        verify_weights: compare the digest of every chunk of weights, on GPUs on its way to the device.
    """

    level: str | None = None
    threads: int | None = None
    kv_tokens: int | None = None
    golden_check: bool = True
    pin: bool = False
    target: str | None = None
    devices: tuple[int, ...] | None = None
    executor: str = "auto"
    gpu_memory_utilization: float = DEFAULT_UTILIZATION
    verify_weights: bool = False


def boot(path: Path, options: BootOptions | None = None, ledger: Ledger | None = None) -> Model:
    """Opens the bundle at `path` and boots it.

    Raises:
        BundleNotFoundError: there is no bundle.
        VerificationError: a file, plan, code object or golden is not what the manifest says.
        UnsupportedError: this machine or this version cannot run it.
        OutOfMemoryError: the memory plan does not fit.
    """
    ledger = Ledger() if ledger is None else ledger
    with ledger.stage("open") as row:
        bundle = open_bundle(path)
        row.note = bundle.manifest.model.name
    return boot_bundle(bundle, options, ledger)


def boot_bundle(bundle: Bundle, options: BootOptions | None, ledger: Ledger) -> Model:
    """Boots an opened bundle; see `boot`. One that still arrives is abandoned if this fails."""
    try:
        return _boot_on_any(bundle, BootOptions() if options is None else options, ledger)
    except BaseException:
        if isinstance(bundle, ArrivingBundle):
            bundle.arrival.abandon()
        raise


def _boot_on_any(bundle: Bundle, options: BootOptions, ledger: Ledger) -> Model:
    asked_for_cpu = options.target == CPU or (options.target is None and options.level is not None)
    if not asked_for_cpu and any(memory.target != CPU for memory in bundle.manifest.memory):
        from paiton_runtime.targets import choose_devices  # noqa: PLC0415  (a boot on the cpu does without)

        if choice := choose_devices(bundle, options.target, options.devices):
            from paiton_runtime.boot_device import boot_on_devices  # noqa: PLC0415

            return boot_on_devices(bundle, choice, options, ledger)
    elif options.target not in (None, CPU):
        bundle.memory(options.target)  # says which targets there are
    return _boot_on_cpu(bundle, options, ledger)


def _boot_on_cpu(bundle: Bundle, options: BootOptions, ledger: Ledger) -> Model:
    manifest = bundle.manifest
    processes_before = processes_started()
    with ledger.stage("device") as row:
        code = _choose_code(bundle, options.level)
        workers = team_size(manifest.tp, options.threads)
        driver = CpuDriver(manifest.tp, workers, pin=options.pin)
        row.note = f"cpu {code.level}, {manifest.tp} rank(s) x {workers} thread(s)"
    loading: WeightsLoad | None = None
    try:
        for blob in manifest.blobs:
            with bundle.open_blob(blob.rank) as descriptor:
                driver.open_weights(descriptor, blob.size, str(bundle.blob_path(blob.rank)))
        loading = WeightsLoad(driver, ledger, bundle, verify=options.verify_weights)
        model = _prepare(bundle, code, driver, workers, options, ledger, processes_before)
        loading.finish()
        with ledger.stage("warm-up") as row:
            row.note = f"{model.steps} steps before the first request"
        check_goldens(model, options.golden_check)
    except BaseException:
        if loading is not None:
            loading.abandon()
        driver.close()
        raise
    ledger.mark("total")
    return model


def _choose_code(bundle: Bundle, level: str | None) -> CodeObject:
    objects = bundle.code_objects(CPU)
    return objects[choose_level(objects, cpu_flags(), level)]


class WeightsLoad:
    """Loads weights in a thread, while they arrive if they do; the ledger's `weights` stage.

    Args:
        driver: that loads them.
        ledger: of the boot.
        bundle: whose they are; those that arrive are verified anyway.
        verify: hash them afterwards, where the driver does not.
    """

    def __init__(self, driver: Driver, ledger: Ledger, bundle: Bundle, *, verify: bool = False) -> None:
        self._driver = driver
        self._ledger = ledger
        self._size = sum(blob.size for blob in bundle.manifest.blobs)
        self._arrival = bundle.arrival if isinstance(bundle, ArrivingBundle) else None
        self._to_verify = bundle if verify and self._arrival is None else None
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, name="paiton-weights", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._ledger.stage("weights") as row:
                if self._arrival is None:
                    self._driver.load_weights()
                    if self._to_verify is not None:
                        from paiton_artifacts.verify import verify_blobs  # noqa: PLC0415  (brings thread pools)

                        verify_blobs(self._to_verify)
                        row.note = "verified"
                else:
                    self._driver.load_weights(self._arrival.batches())
                    self._arrival.keep()
                    row.note = "verified on their way from the store"
                row.bytes = self._size
        except Exception as error:  # noqa: BLE001  (handed to the booting thread, which raises it)
            self._error = error

    def finish(self) -> None:
        """Waits until the weights are there; raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """Ends the thread soon, whatever it has read: the mappings are about to go."""
        if self._arrival is not None:
            self._arrival.abandon()
        self._driver.stop_loading()
        self._thread.join()


def _prepare(
    bundle: Bundle,
    code: CodeObject,
    driver: Driver,
    workers: int,
    options: BootOptions,
    ledger: Ledger,
    processes_before: int,
) -> Model:
    """Reads plans, reserves regions, loads code and builds graphs."""
    manifest = bundle.manifest
    memory = bundle.memory(CPU)
    with ledger.stage("memory profiling") as row:
        # Read, decoded, and bounded by the regions' extents: all of them, before the first pointer is made.
        plans = [plan for _, plan in bundle.plans(CPU)]
        require_families(plans, CPU)
        budget = plan_budget(
            memory,
            tp=manifest.tp,
            workers=workers,
            max_model_len=manifest.model.max_model_len,
            kv_tokens=options.kv_tokens,
            available=available_memory(),
        )
        driver.allocate(budget.sizes)
        _note_budget(row, budget, memory, len(plans))
    with ledger.stage("graph compilation") as row:
        data = bundle.read_file(code.file)
        driver.load_code(f"{code.target}-{code.level}", data, code.symbols)
        families = build_families(plans, driver)
        launches = sum(graph.launches for family in families.values() for graph in family.graphs)
        compilers = processes_started() - processes_before
        row.bytes = len(data)
        row.note = f"{len(plans)} plans, {launches} launches a rank, compiler calls: {compilers}"
    return Model(manifest, memory, driver, families, level=code.level, ledger=ledger, kv_blocks=budget.kv_blocks)


def require_families(plans: Sequence[Plan] | Sequence[PlanFile], target: str) -> None:
    """Checks that a target has the plans that every step needs.

    Raises:
        PlanError: a family is missing.
    """
    for family in ("forward", "sample"):
        if not any(plan.family == family for plan in plans):
            raise PlanError(f"the bundle has no {family} plan for {target}", hint="build or fetch the bundle again")


def _note_budget(row: Row, budget: Budget, memory: MemoryPlan, plans: int) -> None:
    row.bytes = budget.total
    row.note = f"{plans} plans, KV cache of {budget.kv_blocks * memory.kv_block_tokens} tokens, no profiling run"


def build_families(plans: Sequence[Plan], driver: Driver) -> dict[str, Buckets]:
    """Makes every plan ready, smallest first, by family."""
    families: dict[str, Buckets] = {}
    for plan in sorted(plans, key=lambda plan: (plan.tokens, plan.requests)):
        family = families.setdefault(plan.family, Buckets([], []))
        family.sizes.append((plan.tokens, plan.requests))
        family.graphs.append(driver.build(plan))
    return families


def check_goldens(model: Model, wanted: bool) -> None:
    """Reproduces the goldens of every boot, or says in the ledger that nobody wanted it."""
    with model.ledger.stage("golden check") as row:
        before = model.steps
        chosen = [(i, golden) for i, golden in enumerate(model.manifest.goldens) if golden.at_boot and wanted]
        for index, golden in chosen:
            check_golden(model, golden, f"golden {index}")
        row.note = f"{len(chosen)} prompt(s), {model.steps - before} steps" if wanted else "switched off"
