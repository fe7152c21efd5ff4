"""The part of `paiton-run verify` that runs on GPUs: goldens with every executor, and captured graphs."""

from __future__ import annotations

import functools

from paiton_artifacts.errors import PaitonError
from paiton_artifacts.reader import Bundle
from paiton_runtime.boot import BootOptions
from paiton_runtime.boot_device import boot_on_devices
from paiton_runtime.capture import check_capture
from paiton_runtime.commands.verify import Checks, attempt, check_all_goldens, longest_golden
from paiton_runtime.drivers.gpu import Executor, GpuDriver
from paiton_runtime.ledger import Ledger
from paiton_runtime.targets import DeviceChoice


def check_devices(bundle: Bundle, choice: DeviceChoice, checks: Checks, *, capture: bool) -> None:
    """Checks a bundle on devices, and adds the outcomes to `checks`.

    Goldens run as plain launches and, unless the driver's are known to be wrong, as graphs.

    Args:
        bundle: whose files have been verified.
        choice: the devices.
        checks: where the outcomes go.
        capture: compare captured graphs with explicit ones, for every plan.
    """
    target = choice.memory.target
    options = BootOptions(kv_tokens=longest_golden(bundle), golden_check=False)
    with boot_on_devices(bundle, choice, options, Ledger()) as model:
        driver = model.driver
        if not isinstance(driver, GpuDriver):
            raise PaitonError(f"{target} was booted with another driver")
        executors: tuple[Executor, ...] = ("graph", "launch") if driver.executor == "graph" else ("launch",)
        for executor in executors:
            driver.executor = executor
            checks.goldens.extend(check_all_goldens(model, f"{target}, executor {executor}"))
        for graph in driver.built if capture else ():
            plan = graph.plan
            name = f"capture of {plan.family}-t{plan.tokens}-r{plan.requests} on {target}"
            checks.captures.append(attempt(name, functools.partial(check_capture, driver, graph)))
