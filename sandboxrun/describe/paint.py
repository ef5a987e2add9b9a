"""Colours, and text that is safe to print. Pure."""

from __future__ import annotations

from sandboxrun.log import escape


class Paint:
    """Text for a terminal: escaped, then coloured if colours are wanted (ECMA-48 SGR)."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour

    def __call__(self, text: str, style: str = "") -> str:
        """`style`: head, good, bad, odd, faint or none."""
        text = escape(text)
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._colour and style and text else text

    def row(self, name: str, text: str, style: str = "", *, note: str = "", width: int = 14) -> str:
        """A name, its text, and a note on the source of the text."""
        found = f"  {self(name):<{width}} {self(text, style)}"
        return (found + (f"  {self(f'({note})', 'faint')}" if note else "")).rstrip()


_STYLES = {"head": "1", "good": "32", "bad": "31", "odd": "33", "faint": "2"}
