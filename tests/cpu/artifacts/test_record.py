"""Our `dataclass` beside the standard library's: the same class in two ways behaves the same."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import pickle
import pkgutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import paiton_artifacts
import paiton_runtime
from paiton_artifacts import record
from paiton_artifacts.schema import Chunk

MAKERS = {"ours": (record.dataclass, record.field), "standard": (dataclasses.dataclass, dataclasses.field)}


def classes(kind: str, *, frozen: bool, slots: bool) -> tuple[Any, Any]:
    """Returns a class and one that inherits from it, made by one of the two decorators."""
    maker: Any
    field: Any
    maker, field = MAKERS[kind]

    @maker(frozen=frozen, slots=slots)
    class Base:
        """A base."""

        size: int
        name: str = "x"
        items: list[int] = field(default_factory=list)

        def twice(self) -> int:
            return 2 * self.size

    @maker(frozen=frozen, slots=slots)
    class Derived(Base):
        """One more field."""

        more: float = field(default=0.5)

    return Base, Derived


def outcome(work: Any) -> object:
    """Returns what a function gives, or the type of what it raises."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  (whichever: both have to raise the same)
        return type(error)


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_both_behave_the_same(*, frozen: bool, slots: bool) -> None:
    seen = []
    for kind in MAKERS:
        base, derived = classes(kind, frozen=frozen, slots=slots)
        one, other = base(3), derived(3, name="y", more=1.0)
        seen.append(
            [
                repr(one),
                repr(other),
                one == base(3, "x", []),
                one == derived(3),
                one != base(4),
                outcome(lambda b=base: hash(b(1, "a", ()))) if frozen else base.__hash__,
                outcome(lambda b=base: b()),
                outcome(lambda b=base: b(1, size=2)),
                outcome(lambda b=base: b(1, unknown=2)),
                outcome(lambda o=one: setattr(o, "size", 5)),
                outcome(lambda o=one: delattr(o, "name")),
                other.twice(),
                base(1).items is base(1).items,
                dataclasses.asdict(other),
                repr(dataclasses.replace(other, size=9)),
                [(f.name, f.type) for f in dataclasses.fields(derived)],
                dataclasses.is_dataclass(base),
                derived.__match_args__,
                hasattr(one, "__dict__"),
                copy.deepcopy(other) == other,
                base.__doc__,
                base.__init__.__qualname__.rpartition(".")[2],
            ]
        )
    assert seen[0] == seen[1]


def record_classes() -> list[Any]:
    """Returns every class of the packages that our decorator made."""
    found: dict[Any, None] = {}
    for top in (paiton_artifacts, paiton_runtime):
        for module in pkgutil.walk_packages(top.__path__, f"{top.__name__}."):
            members = vars(importlib.import_module(module.name)).values()
            found |= dict.fromkeys(m for m in members if isinstance(m, type) and "__record_fields__" in vars(m))
    return list(found)


def standard(cls: Any) -> Any:
    """Returns the class that the standard library makes of the same fields and defaults, with no methods of its own."""
    fields: list[Any] = []
    for field in dataclasses.fields(cls):
        default = {"default": field.default} if field.default is not dataclasses.MISSING else {}
        if field.default_factory is not dataclasses.MISSING:
            default = {"default_factory": field.default_factory}
        fields.append((field.name, field.type, dataclasses.field(**default)))
    frozen = cls.__dataclass_params__.frozen
    made = dataclasses.make_dataclass(cls.__name__, fields, frozen=frozen, eq=cls.__eq__ is not object.__eq__)
    made.__qualname__ = cls.__qualname__
    return made


def test_every_class_of_the_packages_is_what_the_standard_library_would_make() -> None:
    classes = record_classes()
    assert len(classes) > 60
    for cls in classes:
        other = standard(cls)
        required = [name for name in cls.__record_fields__ if name not in cls.__record_defaults__]
        values = {name: number for number, name in enumerate(required)}
        seen = []
        for kind in (cls, other):
            if "__post_init__" in vars(cls):  # which wants values that mean something
                seen.append([kind.__match_args__, outcome(lambda k=kind: k(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13))])
                continue
            one, same = kind(**values), kind(*values.values())
            changed = [outcome(lambda o=one, n=name: dataclasses.replace(o, **{n: "x"}) == o) for name in required]
            seen.append(
                [
                    kind.__match_args__,
                    repr(one) if cls.__repr__ is record._repr and not cls.__record_defaults__ else None,
                    (one == same, one != same, one == object()) if not cls.__record_defaults__ else None,
                    outcome(lambda o=one, s=same: hash(o) == hash(s)),
                    changed,
                    outcome(lambda o=one, v=values: {name: dataclasses.asdict(o)[name] for name in v}),
                    outcome(lambda o=one, r=required: setattr(o, r[0], 1)) if required else None,
                    outcome(lambda k=kind: k(*range(99))),
                    outcome(lambda k=kind: k(unknown=1)),
                    outcome(lambda o=one: copy.copy(o) == o) if not cls.__record_defaults__ else None,
                ]
            )
        assert seen[0] == seen[1], cls


def test_the_first_instance_may_be_made_by_several_threads_at_once() -> None:
    for _ in range(50):
        base, _ = classes("ours", frozen=True, slots=True)
        with ThreadPoolExecutor(4) as pool:
            assert set(map(repr, pool.map(base, range(4)))) == {repr(base(number)) for number in range(4)}


def test_the_standard_library_inherits_from_ours() -> None:
    @dataclasses.dataclass(frozen=True)
    class Below(Chunk):
        """One more field."""

        more: int = 0

    assert Below(1, 5, "00", more=2) == dataclasses.replace(Below(0, 5, "00", more=2), offset=1)


def test_identity_and_what_follows_init() -> None:
    @record.dataclass(eq=False, slots=True)
    class Same:
        """Compares by identity."""

        value: int

        def __post_init__(self) -> None:
            self.value += 1

    assert Same(1) != Same(1)
    assert Same(1).value == 2
    assert isinstance(hash(Same(1)), int)


def test_records_travel() -> None:
    chunk = Chunk(0, 5, "00")
    assert pickle.loads(pickle.dumps(chunk)) == chunk == copy.copy(chunk)  # noqa: S301  (our own)
    with pytest.raises(dataclasses.FrozenInstanceError, match="size"):
        chunk.size = 6  # type: ignore[misc]


def test_a_boot_does_not_import_the_standard_librarys() -> None:
    names = "'dataclasses' in sys.modules, 'inspect' in sys.modules"
    program = f"import paiton_runtime.commands.generate, sys; print({names})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
