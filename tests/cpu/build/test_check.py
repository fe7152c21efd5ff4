"""`paiton-build --check` builds again and compares every byte."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paiton_aot import check
from paiton_aot.cli import main
from tests.cpu.build.cached import contents


def test_check_builds_from_nothing_and_compares(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    assert main([str(tiny_checkpoint), "-o", str(bundle), "-q"]) == 0
    files = len(contents(bundle))
    (bundle / "model.sig").write_text("of somebody: no build makes it")
    capsys.readouterr()
    assert main([str(tiny_checkpoint), "-o", str(bundle), "--check", "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["reproduced"], told["files"]) == (True, files)
    assert list(tmp_path.iterdir()) == [bundle]


def test_check_names_the_file_and_the_likeliest_reason(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    assert main([str(tiny_checkpoint), "-o", str(bundle), "-q"]) == 0
    monkeypatch.setattr(check, "replace", lambda options, **_: options)  # compiled already: that is shown above
    command = [str(tiny_checkpoint), "-o", str(bundle), "--check", "-q"]
    assert main([*command, "--name", "other"]) == 4
    assert "it was built with other option/name" in capsys.readouterr().err
    code = bundle / "code" / "cpu" / "generic.so"
    data = bytearray(code.read_bytes())
    data[-1] ^= 1
    code.write_bytes(data)
    assert main(command) == 4
    err = capsys.readouterr().err
    assert "code/cpu/generic.so came out otherwise" in err
    assert "the inputs are the same" in err
    assert list(tmp_path.iterdir()) == [bundle]
