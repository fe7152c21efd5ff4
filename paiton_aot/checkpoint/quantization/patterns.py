"""How configurations name modules. Patterns come from the checkpoint, so matching them must end soon."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from functools import lru_cache

from paiton_aot.checkpoint.fields import shown
from paiton_artifacts.errors import CheckpointFormatError

REGEX = "re:"
"""What a regular expression starts with, in the formats that have them."""

MAX_PATTERN_CHARACTERS = 512
MAX_REPEATS = 4
"""Unbounded repeats in one expression: matching a name of n characters takes at most n to this power steps."""

# Escaped characters count too: telling them apart takes a parser, and names of modules have none of these.
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_REPEAT = re.compile(r"[*+{]")


def has_component(module: str, patterns: Iterable[str]) -> bool:
    """Returns whether a pattern is the module's name or a run of its dotted components ("lm_head", "layers.0")."""
    return any(f".{pattern}." in f".{module}." for pattern in patterns)


def matches_wildcard(module: str, patterns: Iterable[str]) -> bool:
    """Returns whether the whole name of the module matches a pattern with `*`, `?` or `[...]`, or equals it."""
    return any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)


def matches_target(module: str, patterns: Iterable[str], kinds: tuple[str, ...] = ()) -> bool:
    """Returns whether a pattern is the module's name, one of the `kinds` that it has, or an expression after "re:".

    Expressions match from the start of the name, as `re.match` does.

    Raises:
        CheckpointFormatError: an expression is malformed, or could take very long.
    """
    for pattern in patterns:
        if pattern.startswith(REGEX):
            if _compiled(pattern.removeprefix(REGEX)).match(module):
                return True
        elif pattern == module or pattern in kinds:
            return True
    return False


@lru_cache(maxsize=1024)
def _compiled(expression: str) -> re.Pattern[str]:
    hint = "correct quantization_config in config.json; a group may not repeat, and at most four characters may"
    if (
        len(expression) > MAX_PATTERN_CHARACTERS
        or _REPEATED_GROUP.search(expression)
        or len(_REPEAT.findall(expression)) > MAX_REPEATS
    ):
        raise CheckpointFormatError(f"expression {shown(expression)} could take very long to match", hint=hint)
    try:
        return re.compile(expression)
    except (re.error, RecursionError, OverflowError) as error:
        raise CheckpointFormatError(
            f"{shown(expression)} is no regular expression: {error}", hint="correct quantization_config in config.json"
        ) from error
