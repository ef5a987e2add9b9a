"""Messages about a name that is not known: the name that was probably meant, or those that there are."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SHOWN_MAX_CHARS = 80  # of a name that was received
LISTED_MAX = 30  # names in a message


def no_method(type_: str, name: str, known: Iterable[str]) -> str:
    """The message for a method that a type does not have."""
    return f"{type_} has no method {quoted(name)}{expected(name, known)}"


def quoted(text: str) -> str:
    return ascii(text[:SHOWN_MAX_CHARS])


def expected(name: str, known: Iterable[str]) -> str:
    """The end of such a message."""
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name[:SHOWN_MAX_CHARS], names, 1)
    return f", did you mean {near[0]}?" if near else f": expected {listed(names)}"


def listed(names: Iterable[str]) -> str:
    first = sorted(names)
    return " or ".join(first[:LISTED_MAX]) + (" …" if len(first) > LISTED_MAX else "")
