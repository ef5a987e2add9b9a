"""Is it a script, and is it the right one? Pure decisions over bytes."""

from __future__ import annotations

import ast
import hashlib
import warnings

from sandboxrun.errors import FetchError, IntegrityError


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_digest(data: bytes, expected: str | None, origin: str) -> str:
    """The digest of `data`. Raises IntegrityError, naming both, where the hash pins another."""
    digest = sha256(data)
    if expected is not None and digest != expected:
        raise IntegrityError(
            f"{origin} has sha256 {digest}, but field sha256 pins {expected}: fetch what was meant, or change the field"
        )
    return digest


def check_python(data: bytes, origin: str, *, remote: bool) -> None:
    """Raise FetchError unless `data` is UTF-8 Python, and, where it comes from a server, does something."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FetchError(f"{origin} is not UTF-8 text (byte {error.start}): not a Python script") from error
    if text.lstrip()[:1] == "<":
        raise FetchError(f"{origin} is a page of HTML or XML, not a Python script: is it the raw URL?")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except SyntaxError as error:
        raise FetchError(f"{origin} is not valid Python: line {error.lineno}: {error.msg}") from error
    except (ValueError, MemoryError, RecursionError) as error:
        raise FetchError(f"{origin} is not valid Python: {type(error).__name__} while parsing") from error
    if remote and all(map(_does_nothing, tree.body)):
        raise FetchError(f"{origin} does nothing when run: an error message instead of a script?")


def _does_nothing(node: ast.stmt) -> bool:
    """The text of many error answers ("error", {"message": …}) is an expression that Python silently evaluates."""
    return isinstance(node, ast.Expr) and not any(isinstance(part, ast.Call | ast.Await) for part in ast.walk(node))
