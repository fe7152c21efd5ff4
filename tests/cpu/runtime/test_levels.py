"""The best level that bundle and machine share is taken; what the machine lacks is named."""

from __future__ import annotations

import pytest

from paiton_artifacts.errors import UnsupportedHostError, UnsupportedTargetError
from paiton_runtime.levels import LEVELS, choose_level, cpu_flags, runnable_levels

V3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "sse2"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}


@pytest.mark.parametrize(
    ("flags", "levels"),
    [
        ({"sse2"}, ["generic"]),
        (V3, ["x86-64-v3", "generic"]),
        (V4, ["x86-64-v4", "x86-64-v3", "generic"]),
        (V4 - {"avx512dq"}, ["x86-64-v3", "generic"]),
        (V4 | {"avx512vbmi", "avx512_bf16"}, list(LEVELS)),
        (
            V4 | {"avx512vbmi", "avx512_bf16", "GenuineIntel"},
            ["x86-64-v4", "x86-64-v4-bf16-vbmi", "x86-64-v3", "generic"],
        ),
        (V3 - {"fma"}, ["generic"]),
    ],
)
def test_runnable_levels(flags: set[str], levels: list[str]) -> None:
    assert runnable_levels(flags) == levels
    assert choose_level(LEVELS, flags) == levels[0]


def test_the_bundle_may_hold_fewer() -> None:
    assert choose_level(["generic", "x86-64-v3"], V4 | {"avx512vbmi"}) == "x86-64-v3"


def test_a_wish_is_granted_or_refused() -> None:
    assert choose_level(LEVELS, V4 | {"avx512vbmi"}, "generic") == "generic"
    with pytest.raises(UnsupportedHostError, match="lacks avx512_bf16 for level x86-64-v4-bf16-vbmi"):
        choose_level(LEVELS, V4 | {"avx512vbmi"}, "x86-64-v4-bf16-vbmi")
    with pytest.raises(UnsupportedTargetError, match="no cpu level 'x86-64-v9'"):
        choose_level(LEVELS, V4, "x86-64-v9")
    with pytest.raises(UnsupportedHostError, match="none of the bundle's cpu levels: x86-64-v3"):
        choose_level(["x86-64-v3"], {"sse2"})


def test_the_vendor_is_known() -> None:
    vendors = {"GenuineIntel", "AuthenticAMD", "HygonGenuine", "CentaurHauls", "Shanghai"}
    assert len(cpu_flags() & vendors) == 1


def test_hidden_flags_can_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "made_up" not in cpu_flags()
    monkeypatch.setenv("PAITON_CPU_FLAGS", "made_up avx512_bf16")
    assert {"made_up", "avx512_bf16", "sse2"} <= cpu_flags()
