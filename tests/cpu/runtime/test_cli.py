"""Wrong arguments and absent bundles: one line on stderr, the exit code of the class, nothing on stdout."""

from __future__ import annotations

from pathlib import Path

import pytest

from paiton_artifacts.errors import UnsupportedHostError, UsageError
from paiton_runtime import host
from paiton_runtime.cli import main
from paiton_runtime.commands import generate


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "COMMAND"),
        (["frobnicate"], 2, "frobnicate"),
        (["serve"], 2, "serve"),
        (["generate"], 2, "BUNDLE"),
        (["generate", "absent.bundle"], 2, "--prompt-file"),
        (["generate", "absent.bundle", "x", "--prompt-file", "y"], 2, "--prompt-file"),
        (["generate", "absent.bundle", "--prompt-file", "absent.txt"], 2, "absent.txt"),
        (["generate", "absent.bundle", "x", "y"], 2, "unrecognized arguments: y"),
        (["generate", "absent.bundle", "x", "--colour"], 2, "unrecognized arguments: --colour"),
        (["generate", "absent.bundle", "--colour", "x"], 2, "--colour"),
        (["inspect", "absent.bundle", "x"], 2, "unrecognized arguments: x"),
        (["generate", "absent.bundle", "--threads", "1", "x"], 5, "absent.bundle"),
        (["generate", "absent.bundle", "--threads", "1", "--", "--x"], 5, "absent.bundle"),
        (["generate", "absent.bundle", "x"], 5, "absent.bundle"),
        (["generate", "absent.bundle", "x", "--threads", "0"], 2, "'0'"),
        (["generate", "absent.bundle", "x", "--kv-tokens", "-5"], 2, "'-5'"),
        (["generate", "absent.bundle", "x", "--max-tokens", "none"], 2, "'none'"),
        (["generate", "absent.bundle", "x", "--temperature", "-0.5"], 2, "-0.5"),
        (["generate", "absent.bundle", "x", "--temperature", "nan"], 2, "nan"),
        (["generate", "absent.bundle", "x", "--top-p", "0"], 2, "0.0"),
        (["generate", "absent.bundle", "x", "--top-k", "-1"], 2, "-1"),
        (["generate", "absent.bundle", "x", "--seed", "-1"], 2, "-1"),
        (["chat", "absent.bundle"], 5, "absent.bundle"),
        (["inspect", "absent.bundle"], 5, "absent.bundle"),
        (["verify", "absent.bundle"], 5, "absent.bundle"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("paiton-run: error: ")
    assert err.count("\n") == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_a_prompt_file_that_is_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_bytes(b"abc\xff")
    assert main(["generate", "absent.bundle", "--prompt-file", str(prompt)]) in {2, 5}
    with pytest.raises(UsageError, match="not UTF-8: invalid start byte at byte 3"):
        generate._prompt(None, prompt)
    with pytest.raises(UsageError, match="the prompt is not UTF-8"):
        generate._prompt("abc\udcff", None)
    capsys.readouterr()


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("generate", "chat", "inspect", "verify", "exit codes"))


def test_an_unexpected_error_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_args: object) -> int:
        raise ZeroDivisionError("what a surprise")

    monkeypatch.setattr("paiton_runtime.commands.inspect.run", broken)
    monkeypatch.delenv("PAITON_TRACEBACK", raising=False)
    assert main(["inspect", "x"]) == 1
    assert capsys.readouterr().err == (
        "paiton-run: internal error: ZeroDivisionError: what a surprise; hint: set PAITON_TRACEBACK=1 to see where\n"
    )
    monkeypatch.setenv("PAITON_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["inspect", "x"])


def test_an_absent_host_library_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedHostError, match=r"absent: .*libx\.so; hint: .*native/build\.py"):
        host._load(tmp_path / "libx.so")
    (tmp_path / "liby.so").write_bytes(b"not a library")
    with pytest.raises(UnsupportedHostError, match="does not load"):
        host._load(tmp_path / "liby.so")
