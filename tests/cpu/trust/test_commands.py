"""`paiton-build sign`, `paiton-run verify` and the flags of trust, on a bundle that boots."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paiton_aot.cli import main as build_main
from paiton_artifacts.layout import PROVENANCE_NAME, SBOM_NAME, SIGNATURE_NAME
from paiton_runtime.cli import main as run_main
from tests.cpu.trust.pair import KeyPair


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny Llama's bundle."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "llama"))


@pytest.fixture
def signed(bundle: Path, pairs: dict[str, KeyPair]) -> Path:
    """The same, signed by the command."""
    assert build_main(["sign", str(bundle), "--key", str(pairs["p256"].private), "-q"]) == 0
    return bundle


def test_sign_tells_what_it_signed(bundle: Path, pairs: dict[str, KeyPair], capsys: pytest.CaptureFixture[str]) -> None:
    assert build_main(["sign", str(bundle), "--key", str(pairs["p256"].private), "--json"]) == 0
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["files"] == sum(path.is_file() for path in bundle.rglob("*")) - 1
    assert told["signature"] == str(bundle / SIGNATURE_NAME)
    assert f"{told['files']} files signed with the key {told['key'][:16]}" in captured.err


def test_verify_reports_every_file_and_the_signature(
    signed: Path, pairs: dict[str, KeyPair], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trusted-key", str(pairs["p256"].public), "--require-signature"]
    assert run_main(["verify", str(signed), "--json", *flags]) == 0
    told = json.loads(capsys.readouterr().out)
    on_disk = {str(path.relative_to(signed)) for path in signed.rglob("*") if path.is_file()}
    assert {entry["name"] for entry in told["files"]} == on_disk - {SIGNATURE_NAME}
    assert told["signature"] == "verified"
    assert told["unlisted"] == []
    assert run_main(["verify", str(signed), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"ok      {SIGNATURE_NAME} by {told['key'][:16]}")
    assert f"ok      {SBOM_NAME}" in lines
    assert f"ok      {PROVENANCE_NAME}" in lines


def test_verify_without_a_key_says_that_it_did_not_look(signed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (signed / "README").write_text("not ours")
    assert run_main(["verify", str(signed)]) == 0
    out = capsys.readouterr().out
    assert f"note    {SIGNATURE_NAME} was not checked" in out
    assert "unused  README" in out
    assert run_main(["verify", str(signed), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["signature"], told["key"], told["unlisted"]) == ("unchecked", None, ["README"])


def test_verify_goes_on_after_a_wrong_signature_but_runs_nothing(
    signed: Path, pairs: dict[str, KeyPair], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(["verify", str(signed), "--trusted-key", str(pairs["stranger"].public), "--json"]) == 4
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["signature"] == "failed"
    assert told["files"]
    assert all(entry["ok"] for entry in told["files"])
    assert told["goldens"] == []
    assert "stranger.pub.pem" in captured.err


def test_a_damaged_sbom_of_a_signed_bundle_fails(
    signed: Path, pairs: dict[str, KeyPair], capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray((signed / SBOM_NAME).read_bytes())
    data[data.index(b"LlamaForCausalLM")] ^= 1
    (signed / SBOM_NAME).write_bytes(data)
    assert run_main(["verify", str(signed)]) == 0  # nothing says what it should be
    capsys.readouterr()
    assert run_main(["verify", str(signed), "--trusted-key", str(pairs["p256"].public)]) == 4
    captured = capsys.readouterr()
    assert f"FAILED  {SBOM_NAME}" in captured.out
    assert "the signature declares" in captured.err


def test_keys_come_from_the_environment_too(
    signed: Path, pairs: dict[str, KeyPair], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAITON_TRUSTED_KEYS", f"{pairs['stranger'].public}:{pairs['p256'].public}")
    assert run_main(["verify", str(signed), "--require-signature", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "verified"
    # What the command line names replaces it.
    flags = ["--trusted-key", str(pairs["stranger"].public)]
    assert run_main(["verify", str(signed), "--require-signature", *flags]) == 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--require-signature"], "--require-signature needs a key to trust"),
        (["--trusted-key", "absent.pem"], "absent.pem cannot be read"),
    ],
)
def test_wrong_flags_are_a_matter_of_usage(
    signed: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(["verify", str(signed), *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "inspect"])
def test_every_command_asks_the_policy(
    signed: Path, pairs: dict[str, KeyPair], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = ["hello", "--max-tokens", "2"] if command == "generate" else []
    ours = ["--require-signature", "--trusted-key", str(pairs["p256"].public)]
    assert run_main([command, str(signed), *prompt, *ours]) == 0
    other = ["--require-signature", "--trusted-key", str(pairs["stranger"].public)]
    assert run_main([command, str(signed), *prompt, *other]) == 4
    (signed / SIGNATURE_NAME).unlink()
    assert run_main([command, str(signed), *prompt, *ours]) == 4
    assert "is not signed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["blobs/rank-0.bin", "code/cpu/generic.so", "tokenizer/encoder.bin"])
def test_a_boot_that_requires_a_signature_hashes_all_that_it_uses(
    signed: Path, pairs: dict[str, KeyPair], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last byte of the weights, which no golden would miss, too."""
    flags = ["--require-signature", "--trusted-key", str(pairs["p256"].public), "--cpu-level", "generic"]
    command = ["generate", str(signed), "hello", "--max-tokens", "2", *flags]
    assert run_main(command) == 0
    with (signed / name).open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    capsys.readouterr()
    assert run_main(command) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{signed / name}: SHA-256" in captured.err
