"""What a chat may, must or must not call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paiton_artifacts.record import dataclass
from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.openai.grammar import Grammar
from paiton_runtime.server.openai.requests import ChatRequest, NamedTool
from paiton_runtime.server.openai.sampling import wanted_grammar
from paiton_runtime.server.openai.tools.calls import CallParser, PlainText
from paiton_runtime.server.openai.tools.formats import ToolFormat


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How a chat uses tools.

    Attributes:
        format: how calls look.
        functions: that may be called; empty when the answer is text.
        grammar: that makes the answer a call.
        named: whether the request says which.
    """

    format: ToolFormat
    functions: Sequence[dict[str, Any]] = ()
    grammar: Grammar | None = None
    named: bool = False

    def parser(self) -> CallParser:
        """Returns a parser for one answer."""
        return self.format.parser(self.functions) if self.functions else PlainText()


def tool_use(form: ToolFormat, body: ChatRequest) -> ToolUse:
    """Returns how a chat uses tools.

    Raises:
        ApiError: 400: it asks for a call that cannot be made.
    """
    functions = [tool["function"] for tool in body.tools or ()]
    choice = body.tool_choice
    if not functions:
        if choice in {None, "none", "auto"}:
            return ToolUse(form)
        raise ApiError(
            400, "tool_choice asks for a call, but there are no tools", param="tool_choice", code="invalid_value"
        )
    if choice == "none":
        return ToolUse(form)
    if choice in {None, "auto"}:
        return ToolUse(form, functions)
    if form.name == "none":
        text = "tool_choice asks for a call, but this server was started to look for none (--tool-call-parser)"
        raise ApiError(400, text, param="tool_choice", code="unsupported_parameter")
    if other := wanted_grammar(body):
        raise ApiError(
            400, f"tool_choice and {other.param} exclude each other", param=other.param, code="invalid_value"
        )
    if body.min_tokens:
        text = "min_tokens and tool_choice exclude each other: the call says where the answer ends"
        raise ApiError(400, text, param="min_tokens", code="invalid_value")
    allowed = functions
    if isinstance(choice, NamedTool):
        allowed = [function for function in functions if function["name"] == choice.function.name][:1]
        if not allowed:
            text = f"tool_choice names {choice.function.name!r}, which is not one of the tools"
            raise ApiError(400, text, param="tool_choice", code="invalid_value")
    many = body.parallel_tool_calls and choice == "required"
    return ToolUse(form, functions, Grammar("lark", form.grammar(allowed, many=many), "tools"), choice != "required")
