"""Request bodies from one declaration: the same fields check what clients send and describe it in the OpenAPI document.

A body is a class whose attributes are made by `value`, each with a kind: what JSON may stand there. Fields that nobody
declared are ignored, and null stands for a field that was left out, as in OpenAI's own interface.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

from paiton_runtime.server.errors import ApiError
from paiton_runtime.server.openai.kinds import Kind, Schema, wrong

REQUIRED = object()
"""Stands for the default of a field that has none."""


class Field:
    """A declared field; see `value`."""

    def __init__(self, kind: Kind, default: object, text: str) -> None:
        self.kind = kind
        self.default = default
        self.text = text

    def schema(self) -> Schema:
        """Returns its JSON schema."""
        described = self.kind.schema()
        if self.default is not REQUIRED:
            described = {"anyOf": [described, {"type": "null"}]}
            if isinstance(self.default, str | int | float):
                described["default"] = self.default
        return {**described, "description": self.text} if self.text else described


def value(kind: Kind, default: object = REQUIRED, text: str = "") -> Any:  # noqa: ANN401  (stands for the field's type)
    """Declares a field of a body.

    Args:
        kind: what it may be.
        default: of a field that was left out; without one, the field is required.
        text: its description.
    """
    return Field(kind, default, text)


class Body:
    """Base of the bodies. Instances have all declared fields as attributes, so it has none of its own."""

    _fields: ClassVar[dict[str, Field]] = {}

    def __init_subclass__(cls) -> None:
        inherited = {name: field for base in reversed(cls.__bases__) for name, field in vars(base)["_fields"].items()}
        cls._fields = inherited | {name: item for name, item in vars(cls).items() if isinstance(item, Field)}


Given = TypeVar("Given", bound=Body)


def read_body(body: type[Given], json: object) -> Given:
    """Returns a request's body.

    Args:
        body: its class.
        json: what the client sent.

    Raises:
        ApiError: 400, with the first field that is wrong.
    """
    if not isinstance(json, dict):
        raise ApiError(400, "the request's body must be a JSON object", code="invalid_value")
    return _read_fields(body, json, "")


def _read_fields(body: type[Given], json: Mapping[str, Any], prefix: str) -> Given:
    made = body()
    for name, field in body._fields.items():
        given = json.get(name)
        if given is not None:
            setattr(made, name, field.kind.read(given, prefix + name))
        elif field.default is REQUIRED:
            text = f"{prefix}{name} is missing"
            raise ApiError(400, text, param=prefix + name, code="missing_required_parameter")
        else:
            setattr(made, name, field.default)
    return made


def object_schema(body: type[Body]) -> Schema:
    """Returns the JSON schema of a body."""
    fields = body._fields
    required = [name for name, field in fields.items() if field.default is REQUIRED]
    properties = {name: field.schema() for name, field in fields.items()}
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


class Record(Kind):
    """An object that a body declares."""

    def __init__(self, body: type[Body]) -> None:
        self.body = body

    def read(self, value: Any, where: str) -> Body:  # noqa: ANN401  (JSON)
        """See `Kind`."""
        return (
            _read_fields(self.body, value, f"{where}.") if isinstance(value, dict) else wrong(where, value, "an object")
        )

    def fits(self, value: object) -> bool:
        """See `Kind`."""
        return isinstance(value, dict)

    def schema(self) -> Schema:
        """See `Kind`."""
        return object_schema(self.body)
