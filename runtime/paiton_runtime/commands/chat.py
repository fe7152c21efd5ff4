"""`paiton-run chat`: a conversation, one line a turn; works on a terminal and when piped."""

from __future__ import annotations

import argparse
import sys

from paiton_artifacts.errors import PromptTooLongError
from paiton_runtime.commands.session import Session, generate_options, start_session, utf8
from paiton_runtime.generate import GenerateOptions, Generator

_HELP = "one line is one message; /reset forgets the conversation, /exit or end of file leaves"


def run(args: argparse.Namespace) -> int:
    """Reads messages from stdin and writes answers to stdout until the end of the input."""
    options = generate_options(args)
    session = start_session(args)
    opening = [{"role": "system", "content": args.system}] if args.system else []
    with session.model:
        print(f"{session.model.ledger.table()}\n\n{_HELP}", file=sys.stderr)
        _Conversation(session, options, opening, interactive=sys.stdin.isatty()).run()
    return 0


class _Conversation:
    """The messages so far. The KV cache of the last turn is reused as far as the next prompt begins alike."""

    def __init__(
        self, session: Session, options: GenerateOptions, opening: list[dict[str, str]], *, interactive: bool
    ) -> None:
        self._session = session
        self._options = options
        self._opening = opening
        self._messages = list(opening)
        self._generator = Generator(session.model)
        self._interactive = interactive

    def run(self) -> None:
        while (line := self._read()) is not None:
            if line == "/exit":
                return
            if line == "/reset":
                self._messages = list(self._opening)
            elif line:
                self._turn(line)

    def _read(self) -> str | None:
        """Returns the next line without its end, or None at the end of the input."""
        if self._interactive:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.buffer.readline()
        return utf8(line, "a message").strip() if line else None

    def _turn(self, line: str) -> None:
        """Answers one message. On a terminal, what does not fit is refused and an interrupt ends the answer only."""
        self._messages.append({"role": "user", "content": line})
        stream = self._session.codec.stream()

        def on_token(token: int) -> None:
            sys.stdout.write(stream.push(token))
            sys.stdout.flush()
            self._session.model.ledger.mark("first token")

        try:
            self._generator.generate(self._session.codec.encode_chat(self._messages), self._options, on_token)
            sys.stdout.write(stream.finish())
        except PromptTooLongError as error:
            if not self._interactive:
                raise
            print(f"{error}; /reset begins anew", file=sys.stderr)
            del self._messages[-1]
            return
        except KeyboardInterrupt:
            if not self._interactive:
                raise
        print(flush=True)
        self._messages.append({"role": "assistant", "content": stream.text})
