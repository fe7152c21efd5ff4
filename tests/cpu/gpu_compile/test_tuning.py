"""Which source a choice comes from, and tuning tables that are damaged or meant for something else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paiton_artifacts.errors import CompilerError, UnsupportedShapeError, UnsupportedVersionError, UsageError
from paiton_kernels.gpu import tuning_table
from paiton_kernels.gpu.compile import COMPILER, CompiledKernel, compile_all
from paiton_kernels.gpu.devices import PROFILES, TARGETS, Profile
from paiton_kernels.gpu.embed import EMBED
from paiton_kernels.gpu.families import FAMILIES
from paiton_kernels.gpu.spec import Config, Constant, Step, Work
from paiton_kernels.gpu.tuning import Choice, Request, bucket_of, choose, record_table
from paiton_kernels.gpu.tuning_table import Entry, TuningTable, read_table, recorded_table
from tests.cpu.gpu_compile.families import SCALE

GFX942, MI300X, MI300A = TARGETS["hip:gfx942"], PROFILES["mi300x"], PROFILES["mi300a"]
FAST, OTHER = Config.of(2, 1, BLOCK=512), Config.of(8, 1, BLOCK=2048)


def request(columns: int = 512, tokens: int = 4, requests: int = 1) -> Request:
    return Request(SCALE, (("COLUMNS", columns), ("FAULT", "NONE")), Step(tokens, requests))


def table(path: Path, config: Config, bucket: str = "t16", **changes: object) -> Path:
    """Writes a table with one entry for `request()`; changes replace top-level fields."""
    TuningTable("mi300x", {("scale", "c512_none", bucket): Entry(config, "measured on a test", 1.25)}).write(path)
    document = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _no_recorded_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_table, "RECORDED", tmp_path / "recorded")


def chosen(kernel_cache: Path, asked: Request, *tables: Path) -> Choice:
    return choose([asked], GFX942, MI300X, kernel_cache, tables)[asked]


def test_measured_comes_before_recorded_before_static(kernel_cache: Path, tmp_path: Path) -> None:
    static = chosen(kernel_cache, request())
    assert static.source == "static"
    assert static.config in request().space(MI300X)
    recorded = next(config for config in request().space(MI300X) if config != static.config)
    table(tuning_table.RECORDED / "mi300x.json", recorded)
    assert chosen(kernel_cache, request()) == Choice(recorded, "recorded")
    measured = table(tmp_path / "measured.json", FAST)
    assert chosen(kernel_cache, request(), measured) == Choice(FAST, "measured")
    assert chosen(kernel_cache, request(), table(tmp_path / "first.json", OTHER), measured).config == OTHER
    assert chosen(kernel_cache, request(tokens=512), measured).source == "static", "another bucket"
    assert chosen(kernel_cache, request(columns=1024), measured).source == "static", "another shape"


def test_a_recorded_choice_that_the_space_lost_is_passed_over(kernel_cache: Path) -> None:
    table(tuning_table.RECORDED / "mi300x.json", FAST)
    assert chosen(kernel_cache, request()).source == "static"


def test_a_recorded_table_of_another_compiler_is_passed_over(kernel_cache: Path) -> None:
    table(tuning_table.RECORDED / "mi300x.json", request().space(MI300X)[0], compiler="triton 1.0")
    assert recorded_table(MI300X) is None
    assert chosen(kernel_cache, request()).source == "static"


def test_a_space_of_one_needs_no_ranking(tmp_path: Path) -> None:
    only = replace(SCALE, space=lambda _constants, _step, _profile: (FAST,))
    asked = replace(request(), spec=only)
    assert choose([asked], GFX942, MI300X, tmp_path)[asked] == Choice(FAST, "only")
    assert not any(tmp_path.iterdir())


def test_an_empty_space_is_an_unsupported_shape(tmp_path: Path) -> None:
    asked = replace(request(), spec=replace(SCALE, space=lambda _constants, _step, _profile: ()))
    with pytest.raises(UnsupportedShapeError, match=r"scale \(c512_none\)"):
        choose([asked], GFX942, MI300X, tmp_path)


def test_every_request_is_decided_once_and_counted(kernel_cache: Path) -> None:
    asked = [request(), request(tokens=3), request(tokens=100), request()]
    counts: list[int] = []
    choices = choose(asked, GFX942, MI300X, kernel_cache, advance=counts.append)
    assert list(choices) == [asked[0], asked[1], asked[2]]
    assert sum(counts) == 3
    assert choices[asked[0]] == choices[asked[1]], "t1 to t16 share a bucket"


def test_a_second_ranking_compiles_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose([request()], GFX942, MI300X, tmp_path)
    for path in (tmp_path / "gpu").glob("*.kernel"):
        path.unlink()

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("a compiler was started")

    monkeypatch.setattr("subprocess.Popen", refuse)
    assert choose([request()], GFX942, MI300X, tmp_path) == first
    (result,) = (tmp_path / "gpu").glob("*.choice")
    result.write_bytes(b"damaged")
    with pytest.raises(AssertionError, match="a compiler was started"):
        choose([request()], GFX942, MI300X, tmp_path)


def test_a_whole_build_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = (("HIDDEN", 576), ("ROW_STRIDE", 576))
    asked = [Request(EMBED, constants, Step(tokens, 1)) for tokens in (1, 2, 64)]
    first = choose(asked, GFX942, MI300X, tmp_path)
    (path,) = (tmp_path / "gpu").glob("*.choices")
    content = path.read_bytes()

    def refuse(*_args: object) -> None:
        raise AssertionError("it was decided again")

    with monkeypatch.context() as patch:
        patch.setattr("paiton_kernels.gpu.tuning._decide", refuse)
        counts: list[int] = []
        assert choose(asked, GFX942, MI300X, tmp_path, advance=counts.append) == first
        assert counts == [3]
        for others in ({"requests": asked[:2]}, {"profile": MI300A}, {"candidates": 1}):
            changed: dict[str, Any] = {"requests": asked, "profile": MI300X, "candidates": 0, **others}
            with pytest.raises(AssertionError, match="decided again"):
                choose(changed["requests"], GFX942, changed["profile"], tmp_path, candidates=changed["candidates"])
        path.write_bytes(content.replace(b'"num_warps": ', b'"num_warps": 1'))
        with pytest.raises(AssertionError, match="decided again"):
            choose(asked, GFX942, MI300X, tmp_path)
    assert choose(asked, GFX942, MI300X, tmp_path) == first
    assert path.read_bytes() == content


def test_candidates_limit_the_ranking_to_the_most_promising(tmp_path: Path) -> None:
    asked = request(tokens=4)
    choice = choose([asked], GFX942, MI300X, tmp_path, candidates=1)[asked]
    assert choice == Choice(asked.space(MI300X)[0], "static")
    assert len(list((tmp_path / "gpu").glob("*.kernel"))) == 1


def test_more_candidates_are_tried_where_the_first_spill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = tuple(Config.of(4, 1, BLOCK=block) for block in (64, 128, 256, 512))
    asked = replace(request(), spec=replace(SCALE, space=lambda _constants, _step, _profile: configs))
    spilling = {"block64", "block128"}

    def compiled(*args: Any, **kwargs: Any) -> dict[str, CompiledKernel]:
        kernels = compile_all(*args, **kwargs)
        return {
            symbol: replace(kernel, spills=int(any(f"_{block}_" in symbol for block in spilling)))
            for symbol, kernel in kernels.items()
        }

    monkeypatch.setattr("paiton_kernels.gpu.tuning.compile_all", compiled)
    assert choose([asked], GFX942, MI300X, tmp_path, candidates=1)[asked] == Choice(configs[2], "static")
    assert len(list((tmp_path / "gpu").glob("*.kernel"))) == 3
    spilling |= {"block256", "block512"}
    with pytest.raises(CompilerError, match=r"none of 4 configurations of scale \(c512_none\) fits mi300x without"):
        choose([asked], GFX942, MI300X, tmp_path / "other", candidates=3)


def test_a_candidate_that_does_not_compile_is_passed_over(tmp_path: Path) -> None:
    bad = Config.of(4, 1, BLOCK=100)  # not a power of two
    asked = replace(request(), spec=replace(SCALE, space=lambda _constants, _step, _profile: (bad, FAST)))
    assert choose([asked], GFX942, MI300X, tmp_path)[asked] == Choice(FAST, "static")
    none = replace(
        asked, spec=replace(SCALE, space=lambda _constants, _step, _profile: (bad, replace(bad, num_warps=2)))
    )
    with pytest.raises(CompilerError, match=r"scale_c512_none_block100\S* for hip:gfx942 failed"):
        choose([none], GFX942, MI300X, tmp_path)


def test_the_profile_must_be_of_the_target(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="h200 is a device of cuda:sm_90, not of hip:gfx942"):
        choose([request()], GFX942, PROFILES["h200"], tmp_path)


@pytest.mark.parametrize(
    ("depends_on", "step", "name", "stands_for"),
    [
        (("tokens",), Step(5, 3), "t16", Step(16, 3)),
        (("tokens",), Step(17, 3), "t32", Step(32, 3)),
        (("requests",), Step(500, 3), "r16", Step(500, 16)),
        (("tokens", "requests"), Step(5, 3), "t8r4", Step(8, 4)),
        (("tokens", "requests"), Step(1, 1), "t1r1", Step(1, 1)),
        ((), Step(5, 3), "any", Step(5, 3)),
    ],
)
def test_buckets_name_what_matters(depends_on: tuple[str, ...], step: Step, name: str, stands_for: Step) -> None:
    def work(_values: Mapping[str, Constant], at: Step, _profile: Profile) -> Work:
        return Work(bytes=sum(getattr(at, field) << 20 * place for place, field in enumerate(depends_on)))

    spec = replace(
        SCALE,
        work=work,
        grid=lambda _values, _step, _profile: (1, 1, 1),
        space=lambda _constants, _step, _profile: (FAST,),
    )
    assert bucket_of(Request(spec, request().constants, step), MI300X) == (name, stands_for)


def test_a_recorded_table_reads_back(kernel_cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "mi300x.json"
    asked = [request(), request(tokens=100), request(columns=1024)]
    written = record_table(path, asked, GFX942, MI300X, kernel_cache)
    assert read_table(path, MI300X).entries.keys() == written.entries.keys()
    assert {bucket for _, _, bucket in written.entries} == {"t16", "t128"}
    assert {entry.provenance for entry in written.entries.values()} == {"static ranking"}
    content = path.read_bytes()
    record_table(path, asked[:1], GFX942, MI300X, kernel_cache)
    assert path.read_bytes() == content, "what is there stays"


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"profile": "h200"}, UsageError, "is for 'h200'"),
        ({"target": "hip:gfx950"}, UsageError, "'hip:gfx950'"),
        ({"compiler": "triton 9.9"}, UnsupportedVersionError, f"made with 'triton 9.9', kernels .* {COMPILER}"),
        ({"format": 2}, UnsupportedVersionError, "has format 2, this version reads 1"),
        ({"format": None}, UsageError, "is not a tuning table"),
        ({"entries": []}, UsageError, "entries is not an object"),
        ({"entries": {"scale": 3}}, UsageError, "scale is not an object"),
        ({"entries": {"scale": {"c": {"t16": {}}}}}, UsageError, "scale.c.t16 has the fields"),
    ],
)
def test_tables_for_something_else_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = table(tmp_path / "table.json", FAST, **changes)
    with pytest.raises(error, match=message):
        choose([request()], GFX942, MI300X, tmp_path, [path])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_warps", 3),
        ("num_warps", 0),
        ("num_warps", 64),
        ("num_warps", True),
        ("num_stages", 0),
        ("num_stages", "2"),
        ("values", {"BLOCK": -1}),
        ("values", {"BLOCK": 1 << 40}),
        ("values", {"BLOCK": 1.5}),
        ("values", None),
        ("options", [1]),
        ("provenance", 7),
        ("microseconds", "fast"),
        ("microseconds", None),
    ],
)
def test_malformed_entries_are_refused(field: str, value: object, tmp_path: Path) -> None:
    path = table(tmp_path / "table.json", FAST)
    document = json.loads(path.read_text(encoding="utf-8"))
    document["entries"]["scale"]["c512_none"]["t16"][field] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match=r"scale\.c512_none\.t16"):
        read_table(path, MI300X)


def test_tables_that_are_no_files_or_no_json_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read: No such file"):
        read_table(tmp_path / "absent.json", MI300X)
    with pytest.raises(UsageError, match=r"cannot be read: Is a directory"):
        read_table(tmp_path, MI300X)
    for content in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"7"):
        path = tmp_path / "table.json"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=r"is not JSON|is not a tuning table"):
            read_table(path, MI300X)


def test_a_huge_table_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_table, "_MAX_BYTES", 100)
    with pytest.raises(UsageError, match="more than 100 bytes"):
        read_table(table(tmp_path / "table.json", FAST), MI300X)


def test_a_table_for_another_version_of_a_kernel_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "table.json", Config.of(4, 1, BLOCK=64, OLD=1))
    with pytest.raises(UnsupportedVersionError, match=r"BLOCK, OLD for kernel scale, which takes BLOCK"):
        choose([request()], GFX942, MI300X, tmp_path, [path])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=JSON)
def test_random_entries_are_refused_or_read(entries: object, tmp_path: Path) -> None:
    path = table(tmp_path / "table.json", FAST, entries=entries)
    try:
        found = read_table(path, MI300X)
    except UsageError:
        return
    assert all(isinstance(entry, Entry) for entry in found.entries.values())


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_shipped_tables_fit_the_kernels(profile: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    path = tuning_table.RECORDED / f"{profile.name}.json"
    if not path.exists():
        return
    found = read_table(path, profile)
    assert found.entries
    for (family, shape, bucket), entry in found.entries.items():
        assert found.config(FAMILIES[family], shape, bucket) == entry.config
        assert entry.microseconds > 0
        assert entry.provenance == "static ranking" or entry.provenance.startswith("measured on ")
