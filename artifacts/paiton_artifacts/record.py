"""`dataclass` for what is imported at every boot: the same classes, made in a tenth of the time.

The standard library's writes the source of six methods for each class and compiles it: half a millisecond, of which a
boot paid forty. Here a class gets methods that all classes share, and its `__init__` when its first instance is made.
What looks at dataclasses from outside (`dataclasses.replace`, `asdict`, `fields`) finds what it needs, when it does.
"""

# ruff: noqa: ANN401 - classes that are made here, and their fields, are of any type

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["dataclass", "field"]

if TYPE_CHECKING:
    from dataclasses import dataclass, field
else:

    def field(*, default: object = ..., default_factory: Any = None) -> _Default:
        """Returns what stands for a field's default: a value, or a function that makes one.

        Raises:
            TypeError: neither was given.
        """
        if default is ... and default_factory is None:
            raise TypeError("a field that is made by field() has a default here")
        return _Default(default, default_factory)

    def dataclass(cls: type | None = None, /, *, frozen: bool = False, slots: bool = False, eq: bool = True) -> Any:
        """Makes a class a dataclass, as `dataclasses.dataclass` does."""
        if cls is None:
            return lambda cls: _make(cls, frozen=frozen, slots=slots, eq=eq)
        return _make(cls, frozen=frozen, slots=slots, eq=eq)


class _Default:
    """A field's default: what a class body's assignment was, or what `field` was given."""

    __slots__ = ("factory", "value")

    def __init__(self, value: object, factory: Any) -> None:
        self.value = value
        self.factory = factory


class _Attribute:
    """An attribute that dataclasses have, taken from one of the standard library's when somebody asks for it."""

    def __init__(self, name: str, *, frozen: bool) -> None:
        self._name = name
        self._frozen = frozen

    def __get__(self, instance: object, owner: Any) -> object:
        import dataclasses  # noqa: PLC0415  (8 ms, with what it imports; a boot does without)

        made = dataclasses.make_dataclass(
            owner.__name__,
            [
                (name, type_, _standard(owner.__record_defaults__, name))
                for name, type_ in owner.__record_fields__.items()
            ],
            frozen=self._frozen,
        )
        found = getattr(made, self._name)
        setattr(owner, self._name, found)
        return found


def _standard(defaults: dict[str, _Default], name: str) -> Any:
    import dataclasses  # noqa: PLC0415  (as above)

    default = defaults.get(name)
    if default is None:
        return dataclasses.field()
    if default.factory is not None:
        return dataclasses.field(default_factory=default.factory)
    return dataclasses.field(default=default.value)


def _make(cls: Any, *, frozen: bool, slots: bool, eq: bool) -> Any:
    fields: dict[str, Any] = {}
    defaults: dict[str, _Default] = {}
    for base in reversed(cls.__mro__[1:]):
        fields |= getattr(base, "__record_fields__", {})
        defaults |= getattr(base, "__record_defaults__", {})
    inherited = set(fields)
    own = cls.__annotations__
    fields |= own
    for name in own:
        if name in cls.__dict__:
            given = cls.__dict__[name]
            defaults[name] = given if isinstance(given, _Default) else _Default(given, None)
    methods = _methods(cls, frozen=frozen, eq=eq)
    methods |= {"__record_fields__": fields, "__record_defaults__": defaults, "__match_args__": tuple(fields)}
    if slots:
        # A class cannot get slots once it is there, so there is another one; defaults would be in the slots' way.
        body = {name: value for name, value in cls.__dict__.items() if name not in (*own, "__dict__", "__weakref__")}
        body |= {"__slots__": tuple(name for name in fields if name not in inherited), **methods}
        made = type(cls)(cls.__name__, cls.__bases__, body)
        made.__qualname__ = cls.__qualname__
    else:
        made = cls
        for name, value in methods.items():
            setattr(made, name, value)
        for name in own:
            if name in defaults and defaults[name].factory is not None:
                delattr(made, name)
            elif name in defaults:
                setattr(made, name, defaults[name].value)

    def __init__(self: Any, *args: object, **named: object) -> None:  # noqa: N807  (its name, as it is shown)
        made.__init__ = _compile_init(made)
        made.__init__(self, *args, **named)

    made.__init__ = __init__
    return made


def _methods(cls: Any, *, frozen: bool, eq: bool) -> dict[str, Any]:
    """Returns what a class gets, its `__init__` aside."""
    methods: dict[str, Any] = {
        name: _Attribute(name, frozen=frozen) for name in ("__dataclass_fields__", "__dataclass_params__")
    }
    if "__repr__" not in cls.__dict__:
        methods["__repr__"] = _repr
    if eq:
        methods["__hash__"] = _hash if frozen else None
        if "__eq__" not in cls.__dict__:
            methods["__eq__"] = _eq
    if frozen:
        methods |= {"__setattr__": _refuse_set, "__delattr__": _refuse_delete}
        methods |= {"__getstate__": _getstate, "__setstate__": _setstate}
    return methods


def _compile_init(cls: Any) -> Any:
    """Returns a class's `__init__`. Fields are set past `__setattr__`, which refuses where the class is frozen."""
    names: dict[str, object] = {"_set": object.__setattr__, "_missing": _MISSING}
    parameters, lines = [], []
    for name in cls.__record_fields__:
        default = cls.__record_defaults__.get(name)
        value = name
        if default is None:
            parameters.append(name)
        elif default.factory is None:
            names[f"_default_{name}"] = default.value
            parameters.append(f"{name}=_default_{name}")
        else:
            names[f"_factory_{name}"] = default.factory
            parameters.append(f"{name}=_missing")
            value = f"_factory_{name}() if {name} is _missing else {name}"
        setter = getattr(getattr(cls, name, None), "__set__", None)  # of a slot
        if setter is None:
            lines.append(f" _set(self, {name!r}, {value})")
        else:
            names[f"_set_{name}"] = setter
            lines.append(f" _set_{name}(self, {value})")
    if hasattr(cls, "__post_init__"):
        lines.append(" self.__post_init__()")
    source = f"def __init__(self, {', '.join(parameters)}):\n" + "\n".join(lines or [" pass"])
    exec(source, names)  # noqa: S102  (of names in our own source; nothing else is in it)
    made: Any = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


_MISSING = object()


def _values(self: Any) -> tuple[object, ...]:
    return tuple([getattr(self, name) for name in self.__record_fields__])


def _repr(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__record_fields__)
    return f"{type(self).__qualname__}({shown})"


def _eq(self: Any, other: Any) -> Any:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse_set(self: Any, name: str, value: object) -> None:  # noqa: ARG001
    import dataclasses  # noqa: PLC0415  (for its error)

    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_delete(self: Any, name: str) -> None:  # noqa: ARG001
    import dataclasses  # noqa: PLC0415  (for its error)

    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> tuple[object, ...]:
    return _values(self)


def _setstate(self: Any, values: tuple[object, ...]) -> None:
    for name, value in zip(self.__record_fields__, values, strict=True):
        object.__setattr__(self, name, value)
