"""Code objects stand alone and are reproducible; specs refuse what kernels cannot do."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import pytest

from paiton_artifacts.errors import CompilerError, UnsupportedShapeError
from paiton_artifacts.temporary import LockedDirectory
from paiton_kernels.cpu import compile as compiler
from paiton_kernels.cpu.compile import LEVELS, compile_level
from paiton_kernels.cpu.elf import check_standalone, dynamic_symbols
from paiton_kernels.families import FAMILIES
from paiton_kernels.spec import Value, Variant

LINEAR: dict[str, Value] = {
    "N": 64,
    "K": 100,
    "ROW_STRIDE": 112,
    "WEIGHT": "FP8",
    "INPUT": "NORM",
    "FORM": "DECODE",
    "EPILOGUE": "STORE",
}


def sample_variants() -> list[Variant]:
    return [
        FAMILIES["linear"].variant(**LINEAR),
        FAMILIES["attention"].variant(Q_HEADS=4, KV_HEADS=2, HEAD_DIM=64),
        FAMILIES["sample"].variant(VOCAB=1000),
        FAMILIES["rope_table"].variant(HEAD_DIM=64),
        FAMILIES["pack"].variant(K=100, INPUT="NORM", ACT="FP8_DYNAMIC"),
    ]


@pytest.mark.parametrize("level", LEVELS)
def test_code_objects_import_nothing_and_export_the_variants(level: str, compiler_cache: Path) -> None:
    code = compile_level(level, sample_variants(), compiler_cache)
    defined, undefined, needed = dynamic_symbols(code)
    assert sorted(defined) == sorted(variant.symbol for variant in sample_variants())
    assert undefined == []
    assert needed == 0


@pytest.mark.parametrize("level", LEVELS)
def test_the_same_variants_give_the_same_bytes_anywhere(
    level: str, compiler_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compile_level(level, sample_variants(), compiler_cache)
    elsewhere = tmp_path / "another place"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    again = compile_level(level, sample_variants()[::-1] * 2, Path("cache"))
    assert first == again
    for text in (os.fsencode(compiler_cache), b"another place", b"kernels.c", b".compile"):
        assert text not in first


def test_a_cached_result_is_used_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = [FAMILIES["rope_table"].variant(HEAD_DIM=64)]
    code = compile_level("generic", variants, tmp_path)
    assert not list(tmp_path.glob(".compile*"))

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the compiler ran again")

    monkeypatch.setattr("subprocess.run", refuse)
    assert compile_level("generic", variants, tmp_path) == code


def test_a_compiler_error_names_the_level_and_the_first_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "translation_unit", lambda _level, _variants: "int f(void) { return undeclared; }")
    with pytest.raises(CompilerError, match=r"level x86-64-v3 .*undeclared"):
        compile_level("x86-64-v3", [], tmp_path)
    assert not list(tmp_path.glob(".compile*"))


def test_a_hanging_compiler_is_killed(tmp_path: Path) -> None:
    with pytest.raises(CompilerError, match="took more than"):
        compile_level("generic", [FAMILIES["rope_table"].variant(HEAD_DIM=32)], tmp_path, timeout=0.01)
    assert not list(tmp_path.glob(".compile*"))


def test_folders_of_killed_builds_are_removed_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    killed, living = LockedDirectory(tmp_path / "compile"), LockedDirectory(tmp_path / "compile")
    killed.renamed()  # gives up the lock, as the kernel does for a process that dies
    compile_level("generic", [FAMILIES["rope_table"].variant(HEAD_DIM=64)], tmp_path)
    assert not killed.path.exists()
    assert living.path.exists()
    living.remove()


def test_an_import_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = 'double cos(double); __attribute__((visibility("default"))) double f(double x) { return cos(x); }'
    monkeypatch.setattr(compiler, "translation_unit", lambda _level, _variants: source)
    with pytest.raises(CompilerError, match="cos"):
        compile_level("generic", [], tmp_path)


@pytest.mark.parametrize("code", [b"", b"\x7fELF\x02\x01", b"MZ" + bytes(100)])
def test_what_is_no_elf_file_is_refused(code: bytes) -> None:
    with pytest.raises(CompilerError, match="not an ELF shared object"):
        check_standalone(code, "this")


def test_arguments_are_packed_eight_bytes_each() -> None:
    variant = FAMILIES["linear"].variant(**LINEAR)
    packed = variant.pack({"counts": 1, "eps": 0.5, "out_col": -2})
    assert len(packed) == 8 * len(variant.spec.args)
    assert struct.unpack_from("<Q", packed, variant.arg_offset("counts")) == (1,)
    assert struct.unpack_from("<d", packed, variant.arg_offset("eps")) == (0.5,)
    assert struct.unpack_from("<q", packed, variant.arg_offset("out_col")) == (-2,)
    with pytest.raises(TypeError, match="nonsense"):
        variant.pack({"nonsense": 1})


def test_symbols_tell_all_variants_apart() -> None:
    shapes = itertools.product((64, 128), (100, 128), (256, 512), ("FP8", "INT8", "BF16"), ("NORM", "BF16"))
    options = list(
        itertools.product(("BF16", "FP8_STATIC", "FP8_DYNAMIC"), (0, 1), ("DECODE", "PREFILL"), ("STORE", "ADD"))
    )
    variants = {
        FAMILIES["linear"].variant(
            N=n, K=k, ROW_STRIDE=s, WEIGHT=w, INPUT=i, ACT=act, GATHER=gather, FORM=form, EPILOGUE=epilogue
        )
        for n, k, s, w, i in shapes
        for act, gather, form, epilogue in options
    }
    assert len({variant.symbol for variant in variants}) == len(variants) == 2**5 * 3 * 3 * 2**3 // 2


@pytest.mark.parametrize(
    ("family", "macros", "message"),
    [
        ("linear", LINEAR | {"N": 8}, "N is 8"),
        ("linear", LINEAR | {"ROW_STRIDE": 99}, "ROW_STRIDE 99"),
        ("linear", LINEAR | {"N": 80, "EPILOGUE": "SILU"}, "N is 80"),
        ("linear", LINEAR | {"EPILOGUE": "ROPE", "Q_HEADS": 1, "KV_HEADS": 1, "HEAD_DIM": 48}, "HEAD_DIM is 48"),
        ("linear", LINEAR | {"EPILOGUE": "ROPE", "Q_HEADS": 1, "KV_HEADS": 1, "HEAD_DIM": 64}, "N is 64"),
        ("linear", LINEAR | {"Q_HEADS": 1}, "heads given"),
        ("linear", LINEAR | {"WEIGHT": "FP4"}, "WEIGHT is 'FP4'"),
        ("linear", LINEAR | {"K": 0}, "K is 0"),
        ("linear", LINEAR | {"GATHER": 2}, "GATHER is 2"),
        ("attention", {"Q_HEADS": 4, "KV_HEADS": 2, "HEAD_DIM": 80}, "HEAD_DIM is 80"),
        ("attention", {"Q_HEADS": 5, "KV_HEADS": 2, "HEAD_DIM": 64}, "Q_HEADS 5"),
        ("all_reduce", {"RANKS": 17, "HIDDEN": 64, "MODE": "ADD"}, "RANKS is 17"),
        ("embed", {"HIDDEN": 64, "ROWS": 1, "ROW_STRIDE": 126}, "ROW_STRIDE 126"),
        ("rope_table", {"HEAD_DIM": 40}, "HEAD_DIM is 40"),
    ],
)
def test_shapes_that_no_kernel_covers_are_refused(family: str, macros: dict[str, Value], message: str) -> None:
    with pytest.raises(UnsupportedShapeError, match=message):
        FAMILIES[family].variant(**macros)
