"""The build's check of chat templates: its own use of jinja2 beside transformers', and what it finds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from paiton_aot.cli import main
from paiton_aot.templates import PROBES, Probe, Reference, check_template
from paiton_artifacts.errors import TokenizerError
from paiton_artifacts.reader import open_bundle
from paiton_artifacts.schema import TemplateCheck
from paiton_runtime.cli import main as run_main
from tests.make_checkpoints import CHAT_TEMPLATE, edit_json

NAMES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TOOLS = (
    "{%- if tools %}\n{{- '<tools>' }}{%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}{%- endif %}"
    "{%- for m in messages %}{%- if m.content is string and '</think>' in m.content and m.role == 'assistant' %}"
    "{%- set content = m.content.split('</think>')[-1].lstrip('\\n') %}{%- else %}{%- set content = m.content %}"
    "{%- endif %}{{- '<|im_start|>' + m.role + '\\n' + content }}"
    "{%- for call in m.tool_calls or [] %}{{- call.function.name ~ call.function.arguments | tojson(indent=2) }}"
    "{%- endfor %}{{- '<|im_end|>\\n' }}{%- endfor %}{%- set ns = namespace(n=0) %}"
    "{%- for m in messages[::-1] %}{%- if m.role == 'tool' %}{%- continue %}{%- endif %}"
    "{%- set ns.n = ns.n + 1 %}{%- endfor %}{{- ns.n }}{{- strftime_now('%d %b %Y')[:0] }}"
    "{%- if add_generation_prompt %}{% generation %}{{- '<|im_start|>assistant\\n' }}{% endgeneration %}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>' }}{%- endif %}"
    "{%- endif %}"
)


def by_transformers(source: str, probe: Probe) -> str | None:
    """Returns what transformers renders, None where it refuses."""
    options = probe.options
    try:
        result: Any = render_jinja_template(
            [[dict(message) for message in probe.messages]],
            tools=None if options.tools is None else [dict(tool) for tool in options.tools],
            chat_template=source,
            add_generation_prompt=options.add_generation_prompt,
            **{**NAMES, **(options.extra or {})},
        )
    except jinja2.TemplateError:
        return None
    return str(result[0][0])


@pytest.mark.parametrize("source", [CHAT_TEMPLATE, LLAMA2, TOOLS])
def test_usual_templates_come_out_as_by_transformers(source: str) -> None:
    reference = Reference(source)
    rendered = [reference.render(probe.messages, NAMES, probe.options) for probe in PROBES]
    assert rendered == [by_transformers(source, probe) for probe in PROBES]
    assert any(rendered)
    assert check_template(source, NAMES) == TemplateCheck(len(PROBES), ())


@pytest.mark.parametrize(
    ("source", "differing"),
    [
        ("{{ '%02d' % 7 }}", len(PROBES)),  # the runtime's engine has no such operator
        ("{% if tools %}{{ '%02d' % 7 }}{% endif %}", None),
        ("{{ messages[0].content", 0),  # broken for both
        ("{{ undefined.name }}", 0),
    ],
)
def test_what_differs_is_named(source: str, differing: int | None) -> None:
    check = check_template(source, NAMES)
    expected = sum("tools" in p.name or "call" in p.name or "results" in p.name for p in PROBES)
    assert len(check.differing) == (expected if differing is None else differing)
    assert set(check.differing) <= {probe.name for probe in PROBES}


def test_a_template_that_does_not_end_is_refused() -> None:
    with pytest.raises(TokenizerError, match="10,000,000 steps for conversation question"):
        check_template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", NAMES)


def test_the_outcome_is_told_recorded_and_shown(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "hf"))
    edit_json(source / "tokenizer_config.json", chat_template=CHAT_TEMPLATE + "{% if tools %}{{ '%d' % 1 }}{% endif %}")
    assert main([str(source), "-o", str(tmp_path / "bundle"), "--max-num-batched-tokens", "16"]) == 0
    assert "warning: the chat template renders" in capsys.readouterr().err
    check = open_bundle(tmp_path / "bundle").manifest.tokenizer.template_check
    assert check is not None
    assert "tools" in check.differing
    assert "question" not in check.differing
    assert run_main(["inspect", str(tmp_path / "bundle")]) == 0
    shown = capsys.readouterr().out
    assert f"{len(check.differing)} of {check.probes} conversations differ" in shown
    assert "two-results" in shown
