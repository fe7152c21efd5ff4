"""The flags of `paiton-run serve`: vLLM's names, files of options, and what a bundle has decided."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from paiton_aot.cli import _parser as build_parser
from paiton_artifacts.errors import UsageError
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.schema import Manifest
from paiton_runtime.cli import _parse, main
from paiton_runtime.commands.config_file import expand
from paiton_runtime.commands.frozen_flags import asked, check_bundle
from paiton_runtime.commands.serve_arguments import serve_options
from paiton_runtime.server.options import ServeOptions


def options(*words: str) -> ServeOptions:
    return serve_options(_parse(["serve", "x.bundle", *words]))


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAITON_API_KEY", "VLLM_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_no_flags_give_the_defaults_that_the_documentation_of_the_options_has() -> None:
    given = options()
    assert given == ServeOptions()
    assert given.cors.origins == ()
    assert (given.host, given.port) == ("0.0.0.0", 8000)  # noqa: S104  (vLLM's default, which --help explains)


def test_values_arrive() -> None:
    words = (
        "--host ::1 --port 1 --served-model-name a b --api-key k l --root-path /p/ --max-num-seqs 3 --max-model-len 2k"
    )
    words += " --no-enable-prefix-caching --seed 7 --shutdown-timeout 0 --request-timeout 1.5 --disable-log-requests"
    words += ' --allowed-origins \'["https://a", "https://b"]\' --allowed-methods GET,POST --allow-credentials'
    words += " --log-format json --max-request-bytes 1M --tool-call-parser hermes --enable-auto-tool-choice"
    given = options(*shlex.split(words))
    assert (given.host, given.port, given.served_model_names) == ("::1", 1, ("a", "b"))
    assert (given.api_keys, given.root_path, given.seed) == (("k", "l"), "/p", 7)
    assert (given.max_num_seqs, given.max_model_len, given.enable_prefix_caching) == (3, 2000, False)
    assert (given.shutdown_timeout, given.request_timeout, given.log_requests) == (0.0, 1.5, False)
    assert (given.cors.origins, given.cors.methods) == (("https://a", "https://b"), ("GET", "POST"))
    assert (given.cors.credentials, given.log_format, given.max_request_bytes) == (True, "json", 1 << 20)
    assert given.tool_call_parser == "hermes"


def test_underscores_are_dashes_as_in_vllm() -> None:
    assert options("--max_num_seqs", "3", "--served_model_name=a_b").served_model_names == ("a_b",)


@pytest.mark.parametrize("name", ["PAITON_API_KEY", "VLLM_API_KEY"])
def test_a_key_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "secret")
    assert options().api_keys == ("secret",)
    assert options("--api-key", "typed").api_keys == ("typed",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--port 65536", "65536"),
        ("--port -1", "-1"),
        ("--max-num-seqs 0", "'0'"),
        ("--max-request-bytes many", "'many'"),
        ("--header-timeout 0", "'0'"),
        ("--shutdown-timeout -1", "-1"),
        ("--request-timeout nan", "'nan'"),
        ("--seed -1", "-1"),
        ("--seed 18446744073709551616", "18446744073709551616"),
        ("--allowed-origins [1]", "[1]"),
        ("--tool-call-parser mistral", "mistral"),
        ("--log-format xml", "xml"),
        ("--root-path p", "--root-path /p"),
        ("--api-key ''", "API key is empty"),
        ("--chat-template absent.jinja", "absent.jinja"),
        ("--ssl-keyfile k.pem", "--ssl-certfile"),
        ("--ssl-certfile c.pem --ssl-cert-reqs 2", "--ssl-ca-certs"),
        ("--ssl-certfile absent.pem", "absent.pem"),
        ("--config absent.toml", "absent.toml"),
        ("--frobnicate", "--frobnicate"),
    ],
)
def test_wrong_values_are_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "absent.bundle", *shlex.split(words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("paiton-run: error: ")
    assert error.count("\n") == 1
    assert message in error


def test_help_names_every_flag_that_is_meant_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    for flag in ("--host", "--uds", "--max-model-len", "--shutdown-timeout", "--kv-tokens", "--dtype"):
        assert flag in text


# Files of options.

TOML = """
model = "from-file.bundle"
port = 9000
served-model-name = ["a", "b"]
enable_prefix_caching = false
allow-credentials = true
allowed-origins = ["https://a", "https://b"]
trust-remote-code = false
seed = 3
"""

LINES = """---
# comment
model: from-file.bundle
port: 9000      # a port
served_model_name:
  - a
  - "b"
enable-prefix-caching: false
allow-credentials: True
allowed-origins: [https://a, "https://b"]
trust-remote-code: no
seed: 3
"""


@pytest.mark.parametrize(("name", "text"), [("c.toml", TOML), ("c.yaml", LINES)])
def test_options_from_a_file(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    args = _parse(["serve", "--config", str(file), "--seed", "4", "--max-num-seqs", "2"])
    given = serve_options(args)
    assert args.bundle == Path("from-file.bundle")
    assert (given.port, given.served_model_names, given.enable_prefix_caching) == (9000, ("a", "b"), False)
    assert (given.cors.credentials, given.seed, given.max_num_seqs) == (True, 4, 2)
    assert given.cors.origins == ("https://a", "https://b")
    assert _parse(["serve", "typed.bundle", f"--config={file}"]).bundle == Path("typed.bundle")


def test_both_kinds_of_files_mean_the_same(tmp_path: Path) -> None:
    files = tmp_path / "a.toml", tmp_path / "a.yaml"
    for file, text in zip(files, (TOML, LINES), strict=True):
        file.write_text(text)
    first, second = (expand(["--config", str(file)], ("--enable-prefix-caching",)) for file in files)
    assert first == second
    assert first[:3] == ["from-file.bundle", "--port", "9000"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "port = ", "c.toml"),
        ("c.toml", "[engine]\nport = 1", "engine is a table"),
        ("c.yaml", "engine:\n  port: 1", "line 2: 'port: 1' is no option"),
        ("c.yaml", "just words", "line 1"),
        ("c.yaml", "http://x", "line 1"),
    ],
)
def test_files_that_hold_something_else(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=re.escape(message)):
        expand(["--config", str(tmp_path / name)], ())


def test_values_with_quotes_colons_and_hashes(tmp_path: Path) -> None:
    file = tmp_path / "c"
    file.write_text("root-path: '/a # b'\nchat-template: a:b#c\nallowed-origins: [\"https://a\", 'https://b']\n")
    assert expand(["b", "--config", str(file)], ()) == (
        ["b", "--root-path", "/a # b", "--chat-template", "a:b#c", "--allowed-origins", "https://a", "https://b"]
    )


# What a bundle has decided.


@pytest.fixture(scope="module")
def manifest(tiny_bundle: Path) -> Manifest:
    return open_bundle(tiny_bundle).manifest


def check(manifest: Manifest, words: str) -> None:
    args = _parse(["serve", "x.bundle", *shlex.split(words)])
    check_bundle(manifest, asked(args), serve_options(args), args.target)


def test_what_the_bundle_holds_may_be_asked_for(manifest: Manifest) -> None:
    model, memory = manifest.model, manifest.memory[0]
    check(manifest, "")
    check(manifest, "--dtype auto --kv-cache-dtype auto --tokenizer auto -q auto")
    check(manifest, "--dtype bfloat16 --tensor-parallel-size 1 --pipeline-parallel-size 1 --block-size 16")
    check(manifest, f"--kv-cache-dtype {model.kv_cache} --quantization {model.weights} --tokenizer '{model.name}'")
    check(manifest, f"--max-model-len {model.max_model_len} --max-num-seqs {memory.max_requests}")
    check(manifest, f"--max-num-batched-tokens {memory.max_tokens} --max-model-len 1")


@pytest.mark.parametrize(
    ("words", "rebuild"),
    [
        ("-tp 2", {"tp": 2}),
        ("--kv-cache-dtype fp8_e4m3", {"kv": "fp8"}),
        ("--quantization bf16", {"weights": "bf16"}),
        ("--max-num-seqs 64", {"max_num_seqs": 64}),
        ("--max-model-len 100000 -tp 4", {"max_model_len": 100000, "tp": 4}),
        ("--max-num-batched-tokens 3000", {"max_num_batched_tokens": 4096}),
    ],
)
def test_what_another_build_could_hold_is_refused_with_its_command(
    manifest: Manifest, words: str, rebuild: dict[str, object]
) -> None:
    """The command parses as one of paiton-build, and asks for what the bundle is but for what was wanted."""
    with pytest.raises(UsageError) as caught:
        check(manifest, words)
    assert words.split()[-2].removeprefix("-") in caught.value.message or "-tp" in words
    command = caught.value.hint.removeprefix("build another: ")
    assert command.startswith("paiton-build MODEL -o BUNDLE ")
    parsed = vars(build_parser().parse_args(shlex.split(command)[1:]))
    model = manifest.model
    kept = {"weights": model.weights, "lm_head": model.lm_head, "kv": model.kv_cache, "tp": manifest.tp}
    assert {name: parsed[name] for name in {**kept, **rebuild}} == {**kept, **rebuild}


@pytest.mark.parametrize(
    "words", ["--dtype float16", "--block-size 32", "-pp 2", "-dp 8", "--quantization awq", "--tokenizer other"]
)
def test_what_no_build_can_hold_is_refused_without_a_command(manifest: Manifest, words: str) -> None:
    with pytest.raises(UsageError, match="the bundle holds") as caught:
        check(manifest, words)
    assert "paiton-build" not in str(caught.value)


def test_a_refusal_ends_the_command_with_2(tiny_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["serve", str(tiny_bundle), "--host", "127.0.0.1", "--port", "0", "-tp", "2", "--dtype", "bfloat16"]) == 2
    )
    assert "--tensor-parallel-size 2: the bundle holds 1; hint: build another: paiton-build" in capfd.readouterr().err
