"""Which format of tool calls a model has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from paiton_artifacts.record import dataclass
from paiton_runtime.server.openai.tools.calls import CallParser, PlainText
from paiton_runtime.server.openai.tools.hermes import CLOSE, OPEN, HermesParser, hermes_grammar
from paiton_runtime.server.openai.tools.llama3 import TAG, Llama3Parser, llama3_grammar

Name = Literal["hermes", "llama3_json", "none"]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A format of tool calls with one tokenizer.

    Attributes:
        name: as `--tool-call-parser` has it.
        special: names of the tokenizer's special tokens.
    """

    name: str
    special: frozenset[str] = frozenset()

    def parser(self, functions: Sequence[dict[str, Any]]) -> CallParser:
        """Returns a parser for one answer."""
        if self.name == "hermes":
            return HermesParser()
        if self.name == "llama3_json":
            return Llama3Parser({function["name"] for function in functions})
        return PlainText()

    @property
    def shows_special_tokens(self) -> bool:
        """Whether special tokens must appear in the text, because calls are marked with them."""
        return self.name == "hermes" and not self.special.isdisjoint((OPEN, CLOSE))

    def grammar(self, functions: Sequence[dict[str, Any]], *, many: bool) -> str:
        """Returns a Lark grammar of answers that are calls, of several where `many`."""
        if self.name == "llama3_json":
            return llama3_grammar(functions, many=many)
        return hermes_grammar(functions, self.special, many=many)


def guess_format(template: str | None) -> Name:
    """Returns the format that a chat template shows the model; Hermes', which most use, where it shows none."""
    text = template or ""
    if OPEN not in text and (TAG in text or '"parameters": dictionary' in text):
        return "llama3_json"
    return "hermes"
