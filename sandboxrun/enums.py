"""Closed sets of values, as enum.Enum and enum.StrEnum make them, for what every start imports.

To import enum takes a twentieth of all that a supervisor executes before its worker runs, and each of its classes more than
one of these. They have what is used of enum: members by name and by value, in order, each with `name` and `value`, and own
`__new__`, `__init__` and methods. There are no aliases. For a type checker they are enum's.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from enum import Enum as Enum
    from enum import StrEnum as StrEnum
else:

    class _Set(type):
        def __new__(meta, name, bases, body):
            rows = {key: row for key, row in body.items() if key[0] != "_" and not hasattr(row, "__get__")}
            cls = super().__new__(meta, name, bases, {key: body[key] for key in body if key not in rows})
            cls._members = {}  # by value
            for key, row in rows.items():
                words = row if isinstance(row, tuple) else (row,)
                member = cls.__new__(cls, *words)
                member.name, member.value = key, getattr(member, "_value_", row)
                if cls.__init__ is not object.__init__:
                    member.__init__(*words)
                if member.value in cls._members:
                    raise TypeError(f"{name}.{key} has the value of {name}.{cls._members[member.value].name}")
                cls._members[member.value] = member
                setattr(cls, key, member)
            return cls

        def __call__(cls, value):
            """The member with this value. Raises ValueError."""
            try:
                return cls._members[value]
            except (KeyError, TypeError):
                raise ValueError(f"{value!r} is not a valid {cls.__name__}") from None

        def __getitem__(cls, name):
            """The member with this name. Raises KeyError."""
            return {member.name: member for member in cls}[name]

        def __iter__(cls):
            return iter(cls._members.values())

    class Enum(metaclass=_Set):
        def __new__(cls, *_):
            return object.__new__(cls)

        def __repr__(self):
            return f"<{type(self).__name__}.{self.name}: {self.value!r}>"

        def __reduce_ex__(self, _):
            return type(self), (self.value,)  # a copy is the member itself

    class StrEnum(str, metaclass=_Set):
        def __new__(cls, value):
            return str.__new__(cls, value)

        __repr__, __reduce_ex__ = Enum.__repr__, Enum.__reduce_ex__
