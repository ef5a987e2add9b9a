"""Whether what was saved is Python: looked at before the worker that runs is given up for it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable


def problems(paths: Iterable[str], folder: str) -> dict[str, str]:
    """The syntax errors of these files, by path: file and line, the message, and the line with a mark under it. A file that
    is gone has none."""
    found = {}
    for path in paths:
        if path.endswith(".py"):
            text = _problem(path, os.path.relpath(path, folder))
            if text is not None:
                found[path] = text
    return found


def _problem(path: str, shown: str) -> str | None:
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, path, "exec", dont_inherit=True)
    except SyntaxError as error:
        text = f"{shown}:{error.lineno or 1}: {type(error).__name__}: {error.msg}"
        if error.text:
            line = error.text.rstrip("\n")
            mark = " " * (max(error.offset or 1, 1) - 1) + "^"
            text += f"\n    {line}\n    {mark}"
        return text
    except (ValueError, RecursionError, MemoryError) as error:  # a NUL byte; nested too deep
        return f"{shown}:1: {type(error).__name__}: {error}"
    return None
