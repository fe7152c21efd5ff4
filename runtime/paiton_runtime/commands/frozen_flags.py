"""Flags of `vllm serve` that a bundle has decided: taken where they ask for what it holds, refused otherwise."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from paiton_artifacts.errors import UsageError
from paiton_artifacts.record import dataclass
from paiton_runtime.server.options import ServeOptions

if TYPE_CHECKING:
    from paiton_artifacts.schema import Manifest

_ALIASES = {"bfloat16": "bf16", "fp8_e4m3": "fp8"}
"""vLLM's words for what is called otherwise here."""

_DEFAULT_SEQS = 32
"""What `paiton-build` does without --max-num-seqs."""


@dataclass(frozen=True, slots=True)
class _Frozen:
    """One flag: its names, what a bundle holds, and `paiton-build`'s flag for it with the values that it takes.

    A flag without a `build_flag` asks for something that no bundle can have, unless it asks for what is held.
    """

    flags: tuple[str, ...]
    held: Callable[[Manifest], tuple[str, ...]]
    build_flag: str = ""
    values: tuple[str, ...] = ()  # none: a number

    @property
    def name(self) -> str:
        """Of the attribute that argparse makes."""
        return self.flags[0].removeprefix("--").replace("-", "_")


_PRECISIONS = ("bf16", "fp8")
_FLAGS = (
    _Frozen(("--dtype",), lambda _: ("bf16", "auto")),
    _Frozen(("--quantization", "-q"), lambda m: (m.model.weights, "auto"), "--weights", _PRECISIONS),
    _Frozen(("--kv-cache-dtype",), lambda m: (m.model.kv_cache, "auto"), "--kv", _PRECISIONS),
    _Frozen(("--tensor-parallel-size", "-tp"), lambda m: (str(m.tp),), "--tp"),
    _Frozen(("--pipeline-parallel-size", "-pp"), lambda _: ("1",)),
    _Frozen(("--data-parallel-size", "-dp"), lambda _: ("1",)),
    _Frozen(("--block-size",), lambda m: (str(m.memory[0].kv_block_tokens),)),
    _Frozen(("--tokenizer",), lambda m: (m.model.name, "auto")),
)


def add_frozen(parser: argparse.ArgumentParser) -> None:
    """Adds the flags."""
    group = parser.add_argument_group("decided by the bundle: what it holds is taken, all else needs another build")
    for frozen in _FLAGS:
        group.add_argument(*frozen.flags, metavar="VALUE")


def asked(args: argparse.Namespace) -> dict[str, str]:
    """Returns what was asked for, by the flags' first names."""
    return {frozen.flags[0]: value for frozen in _FLAGS if (value := getattr(args, frozen.name)) is not None}


def check_bundle(manifest: Manifest, wanted: dict[str, str], options: ServeOptions, target: str | None) -> None:
    """Compares what was asked for with what the bundle holds.

    Args:
        manifest: of the bundle.
        wanted: see `asked`.
        options: whose limits must not exceed the bundle's.
        target: that was asked for.

    Raises:
        UsageError: they differ; its hint is the command that builds a bundle which holds what was asked for.
    """
    refusals: list[str] = []
    changes: dict[str, str] = {}
    possible = True
    for frozen in _FLAGS:
        value = wanted.get(frozen.flags[0])
        if value is None:
            continue
        value, held = _ALIASES.get(value.lower(), value), frozen.held(manifest)
        if value in held:
            continue
        refusals.append(f"{frozen.flags[0]} {value}: the bundle holds {held[0]}")
        changes[frozen.build_flag] = value
        possible &= bool(frozen.build_flag) and (value in frozen.values if frozen.values else value.isdecimal())
    for flag, number, most in _limits(manifest, options, target):
        if number is not None and number > most:
            refusals.append(f"{flag} {number}: the bundle holds {most}")
            changes[flag] = str(number)
    if refusals:
        command = f"build another: {_command(manifest, changes)}"
        raise UsageError("; ".join(refusals), hint=command if possible else "leave it away; no bundle has that")


def _limits(manifest: Manifest, options: ServeOptions, target: str | None) -> tuple[tuple[str, int | None, int], ...]:
    """Returns the flags that may be below the bundle's values, what was asked for, and those values.

    Which target boots is not known yet where none is named: the engine then looks again.
    """
    plans = [memory for memory in manifest.memory if target in (None, memory.target)] or manifest.memory
    return (
        ("--max-model-len", options.max_model_len, manifest.model.max_model_len),
        ("--max-num-seqs", options.max_num_seqs, max(memory.max_requests for memory in plans)),
        ("--max-num-batched-tokens", options.max_num_batched_tokens, max(memory.max_tokens for memory in plans)),
    )


def _command(manifest: Manifest, changes: dict[str, str]) -> str:
    """Returns the command that builds the same bundle with changes. Where its checkpoint lies, a bundle cannot know."""
    model = manifest.model
    flags = {
        "--weights": model.weights,
        "--lm-head": model.lm_head,
        "--act": "bf16" if model.activations == "bf16" else "fp8",
        "--kv": model.kv_cache,
        "--tp": str(manifest.tp),
    }
    seqs = max(memory.max_requests for memory in manifest.memory)
    if seqs != _DEFAULT_SEQS:
        flags["--max-num-seqs"] = str(seqs)
    if "--max-num-batched-tokens" in changes:
        changes["--max-num-batched-tokens"] = str(1 << (int(changes["--max-num-batched-tokens"]) - 1).bit_length())
    targets = dict.fromkeys(memory.target for memory in manifest.memory if memory.target != "cpu")
    words = [f"--target {target}" for target in targets]
    words += [f"{flag} {value}" for flag, value in (flags | changes).items()]
    return " ".join(["paiton-build MODEL -o BUNDLE", *words])
