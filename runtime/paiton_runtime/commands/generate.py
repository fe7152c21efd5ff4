"""`paiton-run generate`: continues one prompt."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from paiton_artifacts.errors import UsageError
from paiton_runtime.commands.session import Session, generate_options, start_session, utf8
from paiton_runtime.generate import GenerateOptions, Generation, Generator
from paiton_runtime.text import TextStream


def run(args: argparse.Namespace) -> int:
    """Boots the bundle, generates, and prints the text or one JSON object."""
    options = generate_options(args)
    prompt = _prompt(args.prompt, args.prompt_file)
    session = start_session(args)
    with session.model:
        codec = session.codec
        ids = codec.encode_chat([{"role": "user", "content": prompt}]) if args.chat else codec.encode(prompt)
        stream = codec.stream()
        done = _generate(session, ids, options, stream, quiet=args.json)
    if args.json:
        import json  # noqa: PLC0415  (not needed before the first token)

        print(json.dumps(_result(session, done, stream.text, options.sampling.seed), ensure_ascii=False))
    else:
        print(_summary(session, done), file=sys.stderr)
    return 0


def _generate(
    session: Session, ids: list[int], options: GenerateOptions, stream: TextStream, *, quiet: bool
) -> Generation:
    """Generates, writing text to stdout as it becomes certain unless `quiet`."""
    ledger, out = session.model.ledger, sys.stdout

    def show(text: str) -> None:
        if text and not quiet:
            out.write(text)
            out.flush()

    def on_token(token: int) -> None:
        show(stream.push(token))
        ledger.mark("first token")

    done = Generator(session.model).generate(ids, options, on_token)
    show(stream.finish() + "\n")
    return done


def _prompt(text: str | None, file: Path | None) -> str:
    """Returns the prompt from wherever it was given.

    Raises:
        UsageError: it was given twice or not at all, cannot be read, or is not UTF-8.
    """
    if (text is None) == (file is None):
        raise UsageError("give one of PROMPT and --prompt-file", hint="PROMPT - reads standard input")
    try:
        if file is not None:
            return utf8(file.read_bytes(), str(file))
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", hint="--prompt-file names a readable text file") from error
    if text == "-":
        return utf8(sys.stdin.buffer.read(), "standard input")
    # An argument that is not in the locale's encoding arrives with surrogates in place of the odd bytes.
    return utf8(os.fsencode(str(text)), "the prompt")


def _result(session: Session, done: Generation, text: str, seed: int) -> dict[str, object]:
    model = session.model
    return {
        "text": text,
        "token_ids": done.token_ids,
        "finish_reason": done.finish_reason,
        "prompt_tokens": done.prompt_tokens,
        "prefill_tokens_per_second": round(done.prefill_rate, 3),
        "decode_tokens_per_second": round(done.decode_rate, 3),
        "seed": seed,
        "level": model.level,
        "ledger": model.ledger.as_list(),
    }


def _summary(session: Session, done: Generation) -> str:
    return (
        f"\n{session.model.ledger.table()}\n\n"
        f"{done.prompt_tokens} prompt tokens at {done.prefill_rate:.1f}/s, "
        f"{len(done.token_ids)} generated at {done.decode_rate:.1f}/s, finished: {done.finish_reason}"
    )
