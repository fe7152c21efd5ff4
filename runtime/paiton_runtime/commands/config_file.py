"""`--config FILE`: options from a file, as words of a command line that stand before what was typed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from paiton_artifacts.command_line import read_text
from paiton_artifacts.errors import UsageError

_FLAG = "--config"
_BUNDLE_NAMES = ("bundle", "model", "model_tag")
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

Value = bool | str | list[str]


def expand(words: list[str], negatable: Iterable[str]) -> list[str]:
    """Returns the words with those of the file in front, so that later, typed ones win; the flag itself goes.

    Underscores in names of options become dashes, as in vLLM. A bundle that the file names comes first where the
    command line has none, which only its own first word can be.

    Args:
        words: after the subcommand.
        negatable: options that also have a form with --no-.

    Raises:
        UsageError: the file cannot be read or holds something else than options.
    """
    words = [_dashed(word) for word in words]
    file, rest = _take_flag(words)
    if file is None:
        return rest
    values = _read(Path(file))
    bundle = [str(values.pop(name)) for name in _BUNDLE_NAMES if name in values][:1]
    typed = bool(rest) and not rest[0].startswith("-")
    made: list[str] = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            made.append(flag)
        elif value is False:
            if flag in negatable:
                made.append(f"--no-{flag[2:]}")
        else:
            made += [flag, *(value if isinstance(value, list) else [value])]
    head, tail = (rest[:1], rest[1:]) if typed else (bundle, rest)
    return [*head, *made, *tail]


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def _take_flag(words: list[str]) -> tuple[str | None, list[str]]:
    file: str | None = None
    rest: list[str] = []
    at = 0
    while at < len(words):
        if words[at] == _FLAG and at + 1 < len(words):
            file = words[at + 1]
            at += 1
        elif words[at].startswith(f"{_FLAG}="):
            file = words[at].removeprefix(f"{_FLAG}=")
        else:
            rest.append(words[at])
        at += 1
    return file, rest


def _read(file: Path) -> dict[str, Value]:
    text = read_text(file, _FLAG)
    return _toml(file, text) if file.suffix == ".toml" else _lines(file, text)


def _toml(file: Path, text: str) -> dict[str, Value]:
    import tomllib  # noqa: PLC0415  (for those who have such a file)

    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: {error}", hint="see https://toml.io") from error
    values: dict[str, Value] = {}
    for name, value in raw.items():
        if isinstance(value, dict):
            raise UsageError(f"{file}: {name} is a table", hint="options stand at the top")
        if isinstance(value, list):
            values[name] = [str(item) for item in value]
        else:
            values[name] = value if isinstance(value, bool) else str(value)
    return values


def _lines(file: Path, text: str) -> dict[str, Value]:
    """Reads `name: value`, `name: [a, b]`, and `name:` with lines of `- item` below it: the YAML that options need."""
    values: dict[str, Value] = {}
    items: list[str] | None = None  # of the name whose value stands on the following lines
    for number, raw in enumerate(text.splitlines(), 1):
        line = _without_comment(raw).rstrip()
        stripped = line.lstrip()
        if not stripped or line == "---":
            continue
        if items is not None and (stripped == "-" or stripped.startswith("- ")):
            items.append(_unquoted(stripped[1:].strip()))
            continue
        name, colon, value = line.partition(":")
        if not colon or stripped != line or (value and not value.startswith(" ")):
            hint = "write `name: value` lines, or TOML into a file whose name ends in .toml"
            raise UsageError(f"{file}, line {number}: {raw.strip()!r} is no option", hint=hint)
        value, items = value.strip(), None
        if not value:
            items = []
            values[name.strip()] = items
        elif value.startswith("[") and value.endswith("]"):
            values[name.strip()] = [_unquoted(word.strip()) for word in value[1:-1].split(",") if word.strip()]
        else:
            values[name.strip()] = _TRUTH.get(value.lower(), _unquoted(value))
    return values


def _without_comment(line: str) -> str:
    """Cuts what follows a # at the beginning or after a space, outside of quotes."""
    quote = ""
    for at, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line


def _unquoted(word: str) -> str:
    return word[1:-1] if len(word) >= 2 and word[0] == word[-1] and word[0] in "\"'" else word
