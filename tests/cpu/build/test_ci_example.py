"""The workflow in examples/ci runs as it is written: its own steps, with folders in the place of the store."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, python_environment

WORKFLOW = ROOT / "examples" / "ci" / "github-actions.yml"
STEPS = ("Build, or find in the cache", "Sign", "Verify, as those who boot it will", "Push")
SHIM = '#!/bin/sh\nexec "{python}" -m {module} "$@"\n'


def workflow() -> dict[str, Any]:
    """Returns the workflow."""
    loaded: dict[str, Any] = yaml.safe_load(WORKFLOW.read_text())
    return loaded


def steps(job: str) -> dict[str, dict[str, Any]]:
    """Returns the steps of a job that have a name."""
    return {step["name"]: step for step in workflow()["jobs"][job]["steps"] if "name" in step}


@pytest.fixture
def runner(tiny_checkpoint: Path, tmp_path: Path) -> dict[str, str]:
    """An environment as a runner has it after the steps that fetch things, in a folder that is a repository."""
    for needed in ("git", "jq", "openssl"):
        if shutil.which(needed) is None:
            pytest.skip(f"the command {needed} is not installed")
    work, programs = tmp_path / "work", tmp_path / "bin"
    work.mkdir()
    programs.mkdir()
    for name, module in (("paiton-build", "paiton_aot.cli"), ("paiton-run", "paiton_runtime.cli")):
        (programs / name).write_text(SHIM.format(python=sys.executable, module=module))
        (programs / name).chmod(0o755)
    shutil.copytree(tiny_checkpoint, work / "checkpoint")
    git = ("git", "-c", "user.name=n", "-c", "user.email=e@example.org", "-C", str(work))
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    key = tmp_path / "key.pem"
    subprocess.run(("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key), check=True)
    subprocess.run(
        ("openssl", "ec", "-in", key, "-pubout", "-out", work / "public.pem"), check=True, capture_output=True
    )
    environment = python_environment()
    return {
        **environment,
        "PATH": f"{programs}:{environment['PATH']}",
        "PAITON_BUILDER_ID": "https://example.org/workflow",
        "NAME": workflow()["env"]["NAME"],
        "CACHE": f"file://{tmp_path}/cache",
        "STORE": f"file://{tmp_path}/store",
        "SIGNING_KEY": key.read_text(),
        "RUNNER_TEMP": str(tmp_path),
        "GITHUB_SHA": "0123abcd",
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "WORK": str(work),
    }


def run(name: str, environment: Mapping[str, str]) -> None:
    """Runs a step as GitHub does: bash, ending at the first error."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", steps("bundle")[name]["run"]]
    done = subprocess.run(
        command, cwd=environment["WORK"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def outputs(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns what the steps have told so far; of a name that was told twice the last."""
    return dict(line.split("=", 1) for line in Path(environment["GITHUB_OUTPUT"]).read_text().splitlines())


def test_the_steps_build_sign_verify_and_push(runner: dict[str, str]) -> None:
    for name in STEPS:
        run(name, runner)
    first = outputs(runner)
    assert first["hit"] == "false"
    assert not (Path(runner["RUNNER_TEMP"]) / "signing.pem").exists()
    environment = {**runner, "PAITON_CACHE": f"{runner['RUNNER_TEMP']}/elsewhere"}
    flags = ("--trusted-key", "public.pem", "--require-signature", "--json")
    pulled = subprocess.run(
        ["paiton-run", "verify", first["bundle"], *flags],
        cwd=runner["WORK"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert pulled.returncode == 0, pulled.stderr
    assert json.loads(pulled.stdout)["signature"] == "verified"
    provenance = json.loads((Path(runner["WORK"]) / "model.bundle" / "provenance.json").read_text())
    assert provenance["predicate"]["runDetails"]["builder"]["id"] == "https://example.org/workflow"
    # The next run, of the same inputs, on a fresh checkout.
    shutil.rmtree(Path(runner["WORK"]) / "model.bundle")
    for name in STEPS:
        run(name, runner)
    assert outputs(runner)["hit"] == "true"
    assert {**outputs(runner), "hit": ""} == {**first, "hit": ""}


def test_actions_are_pinned_to_a_version_and_the_key_is_used_in_one_step() -> None:
    for job in workflow()["jobs"].values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert "@v" in step.get("uses", "@v")
            assert ("secrets." in json.dumps(step)) == (step.get("name") == "Sign")


def test_variables_that_steps_use_are_set() -> None:
    known = {*workflow()["env"], "GITHUB_OUTPUT", "GITHUB_SHA", "GITHUB_STEP_SUMMARY", "RUNNER_TEMP"}
    used = set()
    for step in steps("bundle").values():
        script = step.get("run", "")
        assigned = set(re.findall(r"^\s*(?:export )?(\w+)=", script, re.MULTILINE))
        here = set(re.findall(r"\$(\w+)", script))
        assert here <= known | assigned | set(step.get("env", {}))
        used |= here
    assert {"NAME", "CACHE", "STORE", "SIGNING_KEY"} <= used
