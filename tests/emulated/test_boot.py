"""The runtime boots a bundle on an emulated MI300X, through the driver library that it finds, and matches the cpu."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from paiton_aot.goldens import TOLERANCE
from paiton_artifacts.errors import (
    DeviceFaultError,
    DeviceNotFoundError,
    DigestMismatchError,
    OutOfMemoryError,
    PaitonError,
    UnsupportedHostError,
    UnsupportedTargetError,
    UsageError,
)
from paiton_kernels.sample_reference import (
    Row,
    best_tokens,
    log_probabilities,
    processed_logits,
    rank_of,
    sampled_token,
)
from paiton_runtime.boot import BootOptions, boot
from paiton_runtime.boot_device import BROKEN_GRAPHS
from paiton_runtime.cli import main
from paiton_runtime.model import Chunk, Model, Sampling, StepResult
from tests.emulated.conftest import MakeHip
from tests.emulated.emulated_model import assemblies
from tests.emulated.standin.hip import MI300X, MI355X, HipStandIn
from tests.teacher_forced import logits_of

IDS = [(13 * index + 2) % 380 for index in range(24)]
ALLOWED = [7, 300, 301, 379]
FLAGS = ("--target", "hip:gfx942", "--candidates", "1", "--max-num-batched-tokens", "32")


@pytest.fixture(scope="session")
def bundle(build_bundle: Callable[..., Path], gpu_checkpoint: Path) -> Path:
    """A small Llama with FP8 weights, activations and KV cache, for the cpu and gfx942."""
    return build_bundle("tiny-boot", gpu_checkpoint, *FLAGS, "--act", "fp8", "--kv", "fp8", "--lm-head", "fp8")


@pytest.fixture
def mi300x(make_hip: MakeHip) -> HipStandIn:
    """A machine with one MI300X, whose driver knows the kernels of the test's builds."""
    return register(make_hip(MI300X))


def register(standin: HipStandIn) -> HipStandIn:
    """Tells a stand-in the assembly of everything in the compile cache."""
    for code, assembly in assemblies(Path(os.environ["PAITON_CACHE"])):
        standin.code.register(code, assembly)
    return standin


@pytest.mark.parametrize("executor", ["graph", "launch"])
@pytest.mark.usefixtures("mi300x")
def test_logits_are_those_of_the_cpu(executor: str, bundle: Path) -> None:
    with boot(bundle, BootOptions(target="cpu", golden_check=False)) as reference:
        expected = logits_of(reference, IDS)
    with boot(bundle, BootOptions(executor=executor, kv_tokens=64)) as model:
        assert model.level == "gfx942"
        assert executor in model.ledger.rows["device"].note
        ours = logits_of(model, IDS)
        sampled = model.step([Chunk(IDS, 0, [0, 1])]).sampled
        drawn = [model.step([Chunk(IDS, 0, [0, 1], sampling=Sampling(1.0, seed=7), draw=n)]).sampled for n in range(4)]
        again = [model.step([Chunk(IDS, 0, [0, 1], sampling=Sampling(1.0, seed=7), draw=n)]).sampled for n in range(4)]
    assert drawn == again
    tolerance = TOLERANCE["fp8"] * expected.std()
    assert np.abs(ours - expected).max() <= tolerance
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > tolerance
    assert np.array_equal(ours.argmax(1)[clear], expected.argmax(1)[clear])
    assert sampled == [int(ours[-1].argmax())]


def constrained_step(model: Model, slot: int, history: Sampling, bias: tuple[tuple[int, float], ...]) -> StepResult:
    """Samples four rows of the same prompt: masked, biased, with a history in `slot`, and with nothing."""
    prompt = IDS[:8]
    batch = [
        Chunk(prompt, 0, [0], masked=True),
        Chunk(prompt, 0, [1], sampling=Sampling(bias=bias)),
        Chunk(prompt, 0, [2], sampling=history, slot=slot),
        Chunk(prompt, 0, [3], slot=9),
    ]
    step = model.prepare(batch)
    model.forward(step)
    mask = np.zeros(-(-model.manifest.model.vocab_size // 32) * 32, np.uint8)
    mask[ALLOWED] = 1
    return model.sample(step, {0: np.packbits(mask, bitorder="little").tobytes()})


@pytest.mark.parametrize("executor", ["graph", "serial"])
@pytest.mark.usefixtures("mi300x")
def test_masks_biases_and_histories_choose_the_token(executor: str, bundle: Path) -> None:
    """The device computes what the float64 reference says of the logits that it reports."""
    with boot(bundle, BootOptions(executor=executor, kv_tokens=64, golden_check=False)) as model:
        first = np.array(model.step([Chunk(IDS[:8], 0, [0])]).logits(0))
        best = [int(token) for token in best_tokens(first, 20)]
        slot, prompt, output = 7, best[2:3], [best[0], best[1], best[0]]
        model.load_history(slot, prompt, output)
        counts = np.zeros(len(first), np.int32)
        np.add.at(counts, output, 1)
        counts[prompt] |= -(1 << 31)
        row = Row(repetition=1.5, presence=0.125, frequency=float(first[best[0]] - first[best[3]]))
        wish = Sampling(0.0, 0, 1.0, 0, 0.0, row.repetition, row.presence, row.frequency, top_logprobs=2)
        bias = ((best[0], -np.inf), (best[18], 49.0), (best[19], 50.0))
        biases = np.zeros(len(first), np.float32)
        biases[[token for token, _ in bias]] = [value for _, value in bias]
        seen = []
        for _ in range(2):  # the second step knows what the first one sampled
            found = constrained_step(model, slot, wish, bias)
            logits = [np.array(found.logits(number)) for number in range(4)]
            report = found.report(2, 2)
            everything = np.ones(len(first), bool)
            chosen = np.isin(np.arange(len(first)), ALLOWED)
            expected = [
                sampled_token(processed_logits(logits[0], counts * 0, chosen, Row()), Row())[0],
                sampled_token(processed_logits(logits[1], counts * 0, everything, Row(), biases), Row())[0],
                sampled_token(processed_logits(logits[2], counts, everything, row), row)[0],
                int(logits[3].argmax()),
            ]
            assert found.sampled == expected
            assert report.logprob == pytest.approx(log_probabilities(logits[2])[expected[2]], abs=1e-5)
            assert report.rank == rank_of(logits[2], expected[2])
            assert [token for token, _ in report.top] == best_tokens(logits[2], 2).tolist()
            counts[expected[2]] += 1
            seen.append(expected)
    assert len({*seen[0]}) == 4, "every row is to sample another token"
    assert seen[0][2] != seen[1][2], "the second step is to be penalised for the first one's token"


@pytest.mark.usefixtures("mi300x")
def test_only_what_the_host_sends_may_have_changed(bundle: Path) -> None:
    with boot(bundle, BootOptions(kv_tokens=64, golden_check=False)) as model:
        for name in ("sampled", "temperature", "token_counts", "blocks"):
            with pytest.raises(PaitonError, match=f"io field '{name}' is not one that .* one of bias_tokens, .*mask"):
                model.driver.run(changed=(name,))


@pytest.mark.usefixtures("mi300x")
def test_the_command_generates(bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The command as users run it: goldens checked, tokens sampled on the device, the ledger told."""
    flags = ["--max-tokens", "4", "--ignore-eos", "--kv-tokens", "64", "--json", "--verify-weights"]
    assert main(["generate", str(bundle), "Once upon", *flags]) == 0
    value = json.loads(capfd.readouterr().out)
    stages = {row["stage"]: row for row in value["ledger"]}
    assert "hip:gfx942 mi300x" in stages["device"]["note"]
    assert "none compiled" in stages["graph compilation"]["note"]
    assert stages["weights"]["bytes"] > 0


@pytest.mark.usefixtures("mi300x")
def test_a_damaged_blob_is_found_on_its_way(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    with (copy / "blobs" / "rank-0.bin").open("r+b") as blob:
        blob.seek(1000)
        byte = blob.read(1)
        blob.seek(1000)
        blob.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DigestMismatchError, match=r"rank-0\.bin"):
        boot(copy, BootOptions(kv_tokens=64, verify_weights=True))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            BootOptions(target="cuda:sm_90"),
            UnsupportedTargetError,
            r"the bundle has: cpu \(any\), hip:gfx942 \(mi300x\)",
        ),
        (BootOptions(devices=(0, 1)), UsageError, "2 device.s. given for 1 rank"),
        (BootOptions(devices=(3,)), DeviceNotFoundError, "device"),
        (BootOptions(gpu_memory_utilization=0.001), OutOfMemoryError, "the plan needs .* on each device"),
        (BootOptions(kv_tokens=1 << 32), OutOfMemoryError, "would fit"),
    ],
)
@pytest.mark.usefixtures("mi300x")
def test_what_cannot_be_is_refused(options: BootOptions, error: type[PaitonError], words: str, bundle: Path) -> None:
    with pytest.raises(error, match=words):
        boot(bundle, options)


@pytest.mark.usefixtures("mi300x")
def test_graphs_of_a_driver_that_replays_them_wrongly_are_not_used(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BROKEN_GRAPHS, "HIP 7.2", "replay with stale inputs")
    with boot(bundle, BootOptions(kv_tokens=64)) as model:
        assert model.ledger.rows["device"].note.endswith("launch")
    with pytest.raises(UnsupportedHostError, match=r"graphs of HIP 7\.2\.\d+ replay with stale inputs"):
        boot(bundle, BootOptions(kv_tokens=64, executor="graph"))


def test_another_architecture_is_refused_by_name(bundle: Path, make_hip: MakeHip) -> None:
    register(make_hip(MI355X))
    with pytest.raises(UnsupportedHostError, match=r"MI355X\) is hip:gfx950, the bundle has: cpu, hip:gfx942"):
        boot(bundle, BootOptions(target="hip:gfx942"))
    with boot(bundle, BootOptions()) as model:  # nobody asked for the GPU
        assert model.memory.target == "cpu"


def test_an_absent_driver_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAITON_HIP_LIBRARY", "/nowhere/libamdhip64.so")
    with pytest.raises(DeviceNotFoundError, match=r"/nowhere/libamdhip64\.so"):
        boot(bundle, BootOptions(target="hip:gfx942"))


@pytest.mark.parametrize(
    ("executor", "words"),
    [
        ("graph", "running plan forward-t32-r32 failed: .* hint: boot again with --executor serial"),
        ("serial", "plan forward-t32-r32 of hip:gfx942: linear_fp8_n512_.*_rope_.*, launch 1 of repeat 0"),
    ],
)
@pytest.mark.usefixtures("mi300x")
def test_a_kernel_that_faults_says_where(executor: str, words: str, bundle: Path) -> None:
    """A block number far outside of the KV cache: the host refuses it, so it is put into the device's table."""
    with boot(bundle, BootOptions(kv_tokens=64, golden_check=False, executor=executor)) as model:
        model.step([Chunk(IDS, 0, [0, 1])])
        model._io["block_tables"][0] = 1 << 20
        with pytest.raises(DeviceFaultError, match=words):
            model._driver.run(*model._forward.graphs[-1:], changed=("block_tables",))  # type: ignore[union-attr]
