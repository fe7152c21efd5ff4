"""What is written is what is read: by our reader, and by one written from FORMAT.md alone."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import paiton_artifacts
from paiton_artifacts import container, kernel_table, limits, schema
from paiton_artifacts import plan as plan_module
from paiton_artifacts.errors import OutputExistsError, PlanError, UnsupportedTargetError
from paiton_artifacts.layout import Region
from paiton_artifacts.plan import decode_plan, encode_plan
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.verify import verify_files
from paiton_artifacts.wire import to_wire
from tests import independent_reader
from tests.cpu.artifacts import tiny


def test_manifest_survives(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    expected = tiny.manifest(manifest.blobs, manifest.code_objects, manifest.plans, manifest.tokenizer)
    assert manifest == expected
    assert [blob.rank for blob in manifest.blobs] == [0, 1]


def test_files_are_read_and_verified(tiny_bundle: Path) -> None:
    bundle = open_bundle(tiny_bundle)
    assert bundle.read_file(bundle.manifest.tokenizer.file) == b"{}"
    assert bundle.read_file(bundle.code_objects("cpu")["x86-64-v3"].file) == b"code of x86-64-v3"
    seen: list[tuple[int, int]] = []
    checks = verify_files(bundle, lambda done, total: seen.append((done, total)))
    assert all(check.error is None for check in checks)
    assert len(checks) == tiny.RANKS + 6
    total = sum(path.stat().st_size for path in tiny_bundle.rglob("*") if path.is_file())
    assert seen[-1] == (total - (tiny_bundle / "manifest.msgpack").stat().st_size,) * 2
    assert seen == sorted(seen)


def test_plans_survive(tiny_bundle: Path) -> None:
    plans = [plan for _, plan in open_bundle(tiny_bundle).plans("cpu")]
    assert plans == [tiny.plan("forward", 4), tiny.plan("sample", 8)]
    for plan in plans:
        assert encode_plan(decode_plan(encode_plan(plan))) == encode_plan(plan)


def test_extents_count_one_workers_scratch(tiny_bundle: Path) -> None:
    extents = open_bundle(tiny_bundle).memory("cpu").extents
    assert extents[Region.SCRATCH] == 1024 + 256
    assert extents[Region.KV] == tiny.KV_BLOCK_BYTES


def test_unknown_target_names_those_that_exist(tiny_bundle: Path) -> None:
    with pytest.raises(UnsupportedTargetError, match="no target 'sm_90a', the bundle has: cpu"):
        list(open_bundle(tiny_bundle).plans("sm_90a"))


def test_nothing_but_the_bundle_is_left(tiny_bundle: Path) -> None:
    assert [path.name for path in tiny_bundle.parent.iterdir()] == ["bundle"]
    files = {str(path.relative_to(tiny_bundle)) for path in tiny_bundle.rglob("*") if path.is_file()}
    assert files == {
        "manifest.msgpack",
        "blobs/rank-0.bin",
        "blobs/rank-1.bin",
        "code/cpu/generic.so",
        "code/cpu/x86-64-v3.so",
        "plans/cpu/forward-t4-r2.plan",
        "plans/cpu/sample-t8-r2.plan",
        "tokenizer/tokenizer.json",
        "tokenizer/chat_template.jinja",
    }


def test_existing_output_is_refused_before_any_work(tiny_bundle: Path) -> None:
    with pytest.raises(OutputExistsError, match=f"output {tiny_bundle} exists") as caught:
        tiny.write(tiny_bundle)
    assert caught.value.exit_code == 2
    assert "--force" in caught.value.hint


def test_independent_reader_extracts_every_tensor(tiny_bundle: Path) -> None:
    bundle = independent_reader.read_bundle(tiny_bundle)
    assert bundle.tensor_names() == [tensor.name for tensor in tiny.tensors()]
    for rank in range(tiny.RANKS):
        for tensor in tiny.tensors():
            expected = (tensor.dtype, tensor.shape, b"".join(tiny.rows(rank, tensor)))
            assert bundle.tensor(rank, tensor.name) == expected
    bundle.verify_blobs()


def test_independent_reader_reads_the_same_manifest_and_plans(tiny_bundle: Path) -> None:
    theirs, ours = independent_reader.read_bundle(tiny_bundle), open_bundle(tiny_bundle)
    assert theirs.manifest == to_wire(ours.manifest)
    for index, (_, plan) in enumerate(ours.plans("cpu")):
        decoded = theirs.plan(index)
        assert [segment["repeat"] for segment in decoded["segments"]] == [1, tiny.LAYERS, 1]
        launches = [launch for segment in plan.segments for launch in segment.launches]
        found: list[dict[str, Any]] = [launch for segment in decoded["segments"] for launch in segment["launches"]]
        for launch, theirs_launch in zip(launches, found, strict=True):
            assert (launch.symbol, launch.flags, launch.args) == tuple(
                theirs_launch[name] for name in ("symbol", "flags", "args")
            )
            for relocation, record in zip(launch.relocations, theirs_launch["relocations"], strict=True):
                assert {**to_wire(relocation), "zero": 0, "zero2": 0} == record


def test_independent_reader_imports_nothing_of_ours() -> None:
    code = "import sys, tests.independent_reader; print(sorted(m for m in sys.modules if m.startswith('paiton')))"
    root = Path(independent_reader.__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_later_minor_version_is_read(victim: Path) -> None:
    file = victim / "manifest.msgpack"
    value = independent_reader.read_container(file.read_bytes(), b"PAITONMF")
    value["format_minor"] = 1
    value["vision"] = {"a field": "of tomorrow"}
    value["tensors"][0]["compressed"] = False
    file.write_bytes(container.pack(container.MANIFEST, value))
    assert open_bundle(victim).manifest.format_minor == 1


def test_encode_refuses_what_decode_refuses() -> None:
    plan = tiny.plan()
    with pytest.raises(PlanError, match="segments has 257 items"):
        encode_plan(type(plan)("cpu", "default", "forward", 1, 1, plan.segments[:1] * (limits.MAX_SEGMENTS + 1)))


def test_format_document_names_every_field() -> None:
    document = (Path(independent_reader.__file__).parents[1] / "artifacts" / "FORMAT.md").read_text()
    structs = [value for value in vars(schema).values() if dataclasses.is_dataclass(value)]
    structs += [plan_module.Plan, plan_module.Segment, plan_module.Launch, plan_module.Relocation]
    structs += [kernel_table.KernelTable, kernel_table.Kernel, kernel_table.KernelArgument]
    names = {field.name for struct in structs for field in dataclasses.fields(struct)}
    assert len(names) > 80
    assert sorted(name for name in names if f"`{name}`" not in document) == []


def test_exports_exist() -> None:
    for name in paiton_artifacts.__all__:
        assert getattr(paiton_artifacts, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        paiton_artifacts.nothing  # noqa: B018
