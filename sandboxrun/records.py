"""Frozen, slotted values, as @dataclass(frozen=True, slots=True) makes them, at a fiftieth of its cost.

dataclasses imports inspect, which imports half of the compiler, and compiles new code for every class: of a start's time,
more than a tenth. For a type checker a record is a dataclass.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Never, NoReturn, TypeVar, dataclass_transform

    T = TypeVar("T")
else:

    def dataclass_transform(**_):
        return lambda decorator: decorator


class _Field:
    __slots__ = ("default_factory", "repr")

    def __init__(self, default_factory: Callable[[], Any] | None, repr: bool) -> None:
        self.default_factory, self.repr = default_factory, repr


def field(*, default_factory: Callable[[], Any] | None = None, repr: bool = True) -> Any:
    """A field whose default is made for each record, or that is not shown."""
    return _Field(default_factory, repr)


_REQUIRED = object()


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """Class decorator: annotated names are fields, in this order; what is assigned to one is its default."""
    body = dict(cls.__dict__)
    names = tuple(body.get("__annotations__", ()))
    defaults = {name: body.pop(name) for name in names if name in body}
    for name in ("__dict__", "__weakref__"):
        body.pop(name, None)
    body |= {
        "__slots__": names,
        "__match_args__": names,
        "_defaults": tuple(defaults.get(name, _REQUIRED) for name in names),
    }
    for method in (__init__, __setattr__, __delattr__, __eq__, __hash__, __repr__, __getstate__, __setstate__):
        body.setdefault(method.__name__, method)
    made: type[T] = type(cls)(cls.__name__, cls.__bases__, body)  # type: ignore[misc]  # a metaclass is called
    return made


def asdict(value: Any) -> dict[str, Any]:
    """The fields of a record by name; their values as they are."""
    return {name: getattr(value, name) for name in value.__slots__}


def replace(value: T, **changes: Any) -> T:
    """Another record of the same kind with these fields changed."""
    return type(value)(**{**asdict(value), **changes})


def never(value: Never) -> NoReturn:
    """After the branches for all members of a closed set: typing.assert_never, without typing. `raise never(x)` tells ruff too."""
    raise AssertionError(f"no branch for {value!r}")


def _values(self: Any) -> tuple[Any, ...]:
    return tuple(getattr(self, name) for name in self.__slots__)


def __init__(self: Any, *args: Any, **named: Any) -> None:
    names, put = self.__slots__, object.__setattr__
    if len(args) > len(names):
        raise TypeError(f"{type(self).__name__} takes {len(names)} values, not {len(args)}")
    for name, value in zip(names, args):  # noqa: B905 - the rest follows
        put(self, name, value)
    for name, value in zip(names[len(args) :], self._defaults[len(args) :]):  # noqa: B905
        if name in named:
            value = named.pop(name)
        elif isinstance(value, _Field) and value.default_factory is not None:
            value = value.default_factory()
        elif value is _REQUIRED or isinstance(value, _Field):
            raise TypeError(f"{type(self).__name__} needs {name}")
        put(self, name, value)
    if named:
        raise TypeError(f"{type(self).__name__} has no {', '.join(named)}, or has it twice")


def __setattr__(self: Any, name: str, value: Any) -> None:
    raise AttributeError(f"{name} of a {type(self).__name__} cannot be changed")


def __delattr__(self: Any, name: str) -> None:
    raise AttributeError(f"{name} of a {type(self).__name__} cannot be removed")


def __eq__(self: Any, other: Any) -> bool:
    return _values(self) == _values(other) if other.__class__ is self.__class__ else NotImplemented


def __hash__(self: Any) -> int:
    return hash(_values(self))


def __repr__(self: Any) -> str:
    shown = (
        f"{name}={getattr(self, name)!r}"
        for name, default in zip(self.__slots__, self._defaults, strict=True)
        if not isinstance(default, _Field) or default.repr
    )
    return f"{type(self).__name__}({', '.join(shown)})"


def __getstate__(self: Any) -> tuple[Any, ...]:
    return _values(self)


def __setstate__(self: Any, state: tuple[Any, ...]) -> None:
    for name, value in zip(self.__slots__, state, strict=True):
        object.__setattr__(self, name, value)
