"""What the wheel and the sdist hold, and what the wheel asks pip to install."""

from __future__ import annotations

import email
import email.message
import importlib.util
import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.cpu.house.conftest import ROOT, build_wheel

BASE_DEPENDENCIES = {
    *("cryptography", "httptools", "llguidance", "minijinja", "msgpack", "obstore"),
    *("prometheus-client", "tokenizers", "uvicorn", "uvloop", "zstandard"),
}
PACKAGES = {"paiton_aot", "paiton_artifacts", "paiton_kernels", "paiton_runtime"}
LIBRARY = "paiton_runtime/_native/libpaiton_host.so"


def read_metadata(wheel: Path, name: str) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (member,) = (m for m in archive.namelist() if m.endswith(f".dist-info/{name}"))
        return email.message_from_bytes(archive.read(member))


def test_base_dependencies_are_exactly_these(wheel: Path) -> None:
    requirements = read_metadata(wheel, "METADATA").get_all("Requires-Dist", [])
    base = {re.split(r"[<>=!~; \[]", r, maxsplit=1)[0] for r in requirements if "extra ==" not in r}
    assert base == BASE_DEPENDENCIES


def test_extras_are_exactly_these(wheel: Path) -> None:
    assert set(read_metadata(wheel, "METADATA").get_all("Provides-Extra", [])) == {"build", "dev", "gpu", "otel"}


def test_wheel_holds_the_four_packages_and_no_sources_of_the_host_library(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert [name for name in names if "native/" in name] == [LIBRARY]
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)


def test_wheel_holds_the_chat_page(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        page = archive.read("paiton_runtime/server/page/index.html")
    assert page == (ROOT / "runtime/paiton_runtime/server/page/index.html").read_bytes()


def test_wheel_fits_any_python_on_old_glibc(wheel: Path) -> None:
    metadata = read_metadata(wheel, "WHEEL")
    assert metadata["Tag"] == "py3-none-manylinux_2_17_x86_64"
    assert metadata["Root-Is-Purelib"] == "false"


def test_host_library_asks_for_no_glibc_after_2_17(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read(LIBRARY)
    assert library[:4] == b"\x7fELF"
    versions = {tuple(map(int, v.split(b"."))) for v in re.findall(rb"GLIBC_([0-9.]+)\0", library)}
    assert versions
    assert max(versions) <= (2, 17)


def test_same_sources_give_the_same_wheel_and_sdist_has_them(wheel: Path, tmp_path: Path) -> None:
    """The wheel built from the sdist, which pip unpacks elsewhere, equals the wheel of the checkout byte for byte."""
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path], cwd=ROOT, check=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert build_wheel(sdist, tmp_path / "wheel").read_bytes() == wheel.read_bytes()


@pytest.fixture
def hook() -> ModuleType:
    """hatch_build.py as a module."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("system", "machine"), [("Linux", "aarch64"), ("Darwin", "x86_64")])
def test_build_on_another_machine_is_refused_by_name(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SystemExit, match=f"x86_64 Linux only, and this is {machine} {system}"):
        hook.require_supported_host()
