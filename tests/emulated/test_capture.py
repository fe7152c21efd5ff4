"""The capture check: a driver that captures a plan as it is passes, one that gets anything wrong is found out."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paiton_artifacts.errors import CaptureMismatchError, DriverError, PaitonError
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.capture import check_capture
from paiton_runtime.cli import main
from paiton_runtime.drivers.device_rank import DeviceGraph
from paiton_runtime.drivers.gpu import GpuDriver
from tests.emulated.conftest import MakeCuda, MakeHip
from tests.emulated.emulated_model import assemblies
from tests.emulated.standin.cuda import CudaStandIn
from tests.emulated.standin.hip import HipStandIn
from tests.emulated.standin.objects import Graph, Node
from tests.emulated.standin.session import embed_case, opened

TARGETS = ("--target", "hip:gfx942", "--target", "cuda:sm_90")
FLAGS = ("--candidates", "1", "--max-num-batched-tokens", "32", "--act", "fp8", "--kv", "fp8", "--lm-head", "fp8")
PLAN = "plan forward-t4-r4"


@pytest.fixture(scope="session")
def bundle(build_bundle: Callable[..., Path], gpu_checkpoint: Path) -> Path:
    """A small Llama for the cpu, gfx942 and sm_90, with few plans."""
    return build_bundle("tiny-capture", gpu_checkpoint, *TARGETS, *FLAGS)


@pytest.fixture
def mi300x(make_hip: MakeHip) -> HipStandIn:
    """A machine with one MI300X, whose driver knows the kernels of the test's builds."""
    standin: HipStandIn = make_hip()
    for code, assembly in assemblies(Path(os.environ["PAITON_CACHE"])):
        standin.code.register(code, assembly)
    return standin


@contextmanager
def booted(bundle: Path, target: str, executor: str = "launch") -> Iterator[GpuDriver]:
    options = BootOptions(target=target, executor=executor, kv_tokens=16, golden_check=False)
    with boot(bundle, options) as model:
        assert isinstance(model.driver, GpuDriver)
        yield model.driver


def plan_of(driver: GpuDriver, name: str = PLAN) -> DeviceGraph:
    (graph,) = (g for g in driver.built if f"plan {g.plan.family}-t{g.plan.tokens}-r{g.plan.requests}" == name)
    return graph


@pytest.mark.parametrize("executor", ["graph", "launch"])
@pytest.mark.usefixtures("mi300x")
def test_every_plan_is_captured_as_it_is_on_hip(executor: str, bundle: Path) -> None:
    with booted(bundle, "hip:gfx942", executor) as driver:
        families = {graph.plan.family for graph in driver.built}
        assert families >= {"forward", "sample"}
        for graph in driver.built:
            assert check_capture(driver, graph) == graph.launches + (graph.plan.family == "forward")


def test_nothing_runs(bundle: Path, make_cuda: MakeCuda) -> None:
    standin: CudaStandIn = make_cuda()
    with booted(bundle, "cuda:sm_90") as driver:
        for graph in driver.built:
            assert check_capture(driver, graph) == graph.launches + (graph.plan.family == "forward")
        assert not standin.launches
        driver.run(plan_of(driver))
        assert len(standin.launches) == plan_of(driver).launches  # the stream is not being captured any more


def change_launch(number: int, **changes: object) -> Callable[[Graph], None]:
    """Returns what changes fields of the launch of a node."""

    def tamper(graph: Graph) -> None:
        node = graph.nodes[number]
        assert node.launch is not None
        node.launch = replace(node.launch, **changes)  # type: ignore[arg-type]

    return tamper


def change_argument(graph: Graph) -> None:
    launch = graph.nodes[3].launch
    assert launch is not None
    first, *others = launch.arguments
    graph.nodes[3].launch = replace(launch, arguments=(bytes([first[0] ^ 16, *first[1:]]), *others))


def lose_argument_order(graph: Graph) -> None:
    launch = graph.nodes[3].launch
    assert launch is not None
    first, second, *others = launch.arguments
    graph.nodes[3].launch = replace(launch, arguments=(second, first, *others))


def swap_nodes(graph: Graph) -> None:
    second, third = graph.nodes[2:4]
    second.launch, third.launch = third.launch, second.launch


def lose_an_edge(graph: Graph) -> None:
    graph.nodes[5].after = []


def fork(graph: Graph) -> None:
    graph.nodes[5].after = [graph.nodes[4], graph.nodes[2]]


def close_a_circle(graph: Graph) -> None:
    graph.nodes[0].after = [graph.nodes[-1]]


def lose_the_last_node(graph: Graph) -> None:
    del graph.nodes[-1]


def raise_priority(graph: Graph) -> None:
    graph.nodes[2].priority = -1


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (
            change_launch(1, grid=(3, 1, 1)),
            r"node 1 \(\w+\): grid is 3 x 1 x 1 in the captured graph, planned is \d+ x",
        ),
        (change_launch(2, block=(32, 1, 1)), r"node 2 \(\w+\): block is 32 x 1 x 1 .*, planned is \d+ x 1 x 1"),
        (change_launch(4, shared_bytes=12345), r"node 4 \(\w+\): shared memory is 12345 .*, planned is \d+;"),
        (change_launch(4, function=16), r"node 4 \(\w+\): kernel is unknown, with handle 0x10 .*, planned is \w+;"),
        (change_argument, r"node 3 \(\w+\): argument 0 \(\w+\) is 0x\w+ in the captured graph, explicit is 0x\w+;"),
        (lose_argument_order, r"node 3 \(\w+\): argument 0 \(\w+\) is "),
        (swap_nodes, r"node 2 \((\w+)\): kernel is (?!\1)\w+ in the captured graph, planned is \1;"),
        (lose_an_edge, r"node 4 \(\w+\): 0 edges lead on in the captured graph, .* and is no chain"),
        (fork, r"node 2 \(\w+\): 2 edges lead on in the captured graph, .* and is no chain"),
        (close_a_circle, "no node is the first of the captured graph, which has"),
        (lose_the_last_node, r"node (\d+) \(\w+\): the captured graph has \1 nodes, planned are \d+;"),
        (raise_priority, r"node 2 \(\w+\): attribute priority is 0xffffffff in the captured graph, explicit is 0x0;"),
    ],
)
def test_what_a_driver_gets_wrong_is_named(
    tamper: Callable[[Graph], None], words: str, bundle: Path, mi300x: HipStandIn
) -> None:
    mi300x.machine.captured = tamper
    with booted(bundle, "hip:gfx942") as driver:
        with pytest.raises(CaptureMismatchError, match=f"^{PLAN} of hip:gfx942, rank 0(?:, |: ){words}") as caught:
            check_capture(driver, plan_of(driver))
        mi300x.machine.captured = lambda _graph: None
        assert check_capture(driver, plan_of(driver))
    assert caught.value.exit_code == 4
    assert "HIP 7.2.54321" in caught.value.hint


def test_a_driver_that_gets_both_graphs_wrong_is_found_out(
    bundle: Path, mi300x: HipStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is the truth, not the explicit graph."""
    prepare = mi300x.machine.prepare

    def wrong(function: int, grid: Any, *rest: Any) -> Node:
        node = prepare(function, grid, *rest)
        assert node.launch is not None
        node.launch = replace(node.launch, grid=(grid[0], grid[1], grid[2] + 1))
        return node

    with booted(bundle, "hip:gfx942") as driver:
        monkeypatch.setattr(mi300x.machine, "prepare", wrong)
        with pytest.raises(
            CaptureMismatchError, match=r"node 1 .*: grid is \d+ x 1 x 2 in the explicit graph, planned"
        ):
            check_capture(driver, plan_of(driver))


def test_a_node_too_many_is_found_out(bundle: Path, mi300x: HipStandIn) -> None:
    machine = mi300x.machine

    def add_a_copy(graph: Graph) -> None:
        node = Node(lambda _device: None, copy=(0, 0, 1), after=[graph.nodes[4]])
        node.handle, graph.nodes[5].after = machine.new(node), [node]
        graph.nodes.append(node)

    machine.captured = add_a_copy
    with (
        booted(bundle, "hip:gfx942") as driver,
        pytest.raises(CaptureMismatchError, match=r"node 5 \(\w+\): type is copy in the captured graph, planned is"),
    ):
        check_capture(driver, plan_of(driver))


def change_copy(graph: Graph) -> None:
    destination, source, size = graph.nodes[0].copy or (0, 0, 0)
    graph.nodes[0].copy = destination + 16, source, size


def give_edges_data(graph: Graph) -> None:
    graph.edge_data = True


@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (change_copy, r"node 0 \(copy\): destination is 0x\w+ in the captured graph, planned is 0x\w+;"),
        (give_edges_data, "an edge of the captured graph does not wait for the whole of the node before it;"),
    ],
)
def test_what_only_cuda_tells(tamper: Callable[[Graph], None], words: str, bundle: Path, make_cuda: MakeCuda) -> None:
    """HIP's structure for a copy is not to be trusted, and its edges have no data."""
    standin: CudaStandIn = make_cuda()
    standin.machine.captured = tamper
    with booted(bundle, "cuda:sm_90") as driver, pytest.raises(CaptureMismatchError, match=words):
        check_capture(driver, plan_of(driver))


@pytest.mark.usefixtures("mi300x")
def test_a_serial_executor_cannot_be_captured(bundle: Path) -> None:
    with booted(bundle, "hip:gfx942", "serial") as driver, pytest.raises(PaitonError, match="serial"):
        check_capture(driver, plan_of(driver))


def test_a_capture_that_fails_leaves_the_stream_usable(make_hip: MakeHip) -> None:
    case = embed_case()
    with opened(make_hip()) as session:
        library, stream = session.library, session.stream
        launch, _ = session.launch_of(case)

        def fails() -> None:
            library.launch(launch, stream)
            raise ArithmeticError

        with pytest.raises(ArithmeticError), library.captured(stream, fails):
            pass
        waits = r"waiting for a stream .*: hipErrorStreamCaptureUnsupported \(900\)"
        with (
            pytest.raises(DriverError, match=waits),
            library.captured(stream, lambda: library.synchronise_stream(stream)),
        ):
            pass
        with library.captured(stream, lambda: library.launch(launch, stream)) as graph:
            (node,) = library.nodes(graph)
            assert library.edges(graph) == []
            offered = library.attributes(node)
        assert offered["priority"] == offered["cooperative"] == bytes(4)
        assert offered["memory synchronisation domain"] is None
        library.launch(launch, stream)
        library.synchronise_stream(stream)


def test_the_command_names_the_plans_that_differ(
    bundle: Path, mi300x: HipStandIn, capfd: pytest.CaptureFixture[str]
) -> None:
    def lose_the_last_node_once(graph: Graph) -> None:
        lose_the_last_node(graph)
        mi300x.machine.captured = lambda _graph: None

    mi300x.machine.captured = lose_the_last_node_once
    assert main(["verify", str(bundle), "--target", "hip:gfx942", "--check-capture", "--json"]) == 4
    out, err = capfd.readouterr()
    value = json.loads(out)
    assert not value["ok"]
    goldens = {(entry["name"].partition(" on ")[2], entry["ok"]) for entry in value["goldens"]}
    assert goldens == {("hip:gfx942, executor graph", True), ("hip:gfx942, executor launch", True)}
    captures = {entry["name"]: entry["ok"] for entry in value["captures"]}
    wrong = "capture of forward-t1-r1 on hip:gfx942"
    assert [name for name, ok in captures.items() if not ok] == [wrong]
    assert {re.sub("-.*", "", name) for name in captures} >= {"capture of forward", "capture of sample"}
    assert err.startswith("paiton-run: error: plan forward-t1-r1 of hip:gfx942, rank 0, node ")


@pytest.mark.usefixtures("mi300x")
def test_verify_runs_everything_that_is_here(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--check-capture"]) == 0
    out = capfd.readouterr().out
    assert "ok      golden 0 on cpu generic" in out
    assert "ok      golden 0 on hip:gfx942, executor launch" in out
    assert "ok      capture of forward-t1-r1 on hip:gfx942" in out
    assert "FAILED" not in out


def test_verify_runs_the_target_that_is_named(
    bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAITON_HIP_LIBRARY", "/absent/libamdhip64.so")
    monkeypatch.setenv("PAITON_CUDA_LIBRARY", "/absent/libcuda.so")
    assert main(["verify", str(bundle), "--target", "cpu"]) == 0
    assert " on hip:" not in capfd.readouterr().out
    for flags, code, words in (
        (["--target", "hip:gfx942"], 7, "/absent/libamdhip64.so"),
        (["--target", "hip:gfx950"], 3, "the bundle has: cpu"),
        (["--target", "cpu", "--check-capture"], 2, "--check-capture needs a GPU, but the target is cpu"),
        (["--check-capture"], 2, "--check-capture needs a GPU, but none is here that the bundle was built for"),
        (["--target", "cpu", "--device", "0"], 2, "--device names GPUs"),
    ):
        assert main(["verify", str(bundle), *flags]) == code
        assert words in capfd.readouterr().err
