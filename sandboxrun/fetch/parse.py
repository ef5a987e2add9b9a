"""Is a text a script? Run as a program for one that nobody has vouched for yet, within limits of its own: a megabyte of
hostile text can cost Python's parser seconds and a gigabyte.

The text comes on standard input. To standard output go the complaint, or nothing, a NUL, and the marshalled code of a script
without one, whose file name is the only argument. Imports nothing of ours.
"""

from __future__ import annotations

import marshal
import resource
import sys
import warnings

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from types import CodeType

MEMORY_BYTES = 512 << 20  # a megabyte of the standard library's source takes 90 MB
CPU_SECONDS = 10  # and 0.3 s
_ONLY_AST = 0x400  # ast.PyCF_ONLY_AST: ast itself takes longer to be imported than a script to be parsed


def complaint(text: str, *, must_act: bool) -> str:
    """Why `text` is no script, or none that does something, completing "the file …"; empty where it is one."""
    return examined(text, must_act=must_act)[0]


def examined(text: str, *, must_act: bool, name: str | None = None) -> tuple[str, CodeType | None]:
    """As `complaint`, and the code, where a file name is given."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = compile(text, name or "<script>", "exec", _ONLY_AST, dont_inherit=True)
            code = compile(tree, name, "exec", dont_inherit=True) if name is not None else None
    except SyntaxError as error:
        return f"is not valid Python: line {error.lineno}: {error.msg}", None
    except (ValueError, MemoryError, RecursionError) as error:
        return f"is not valid Python: {type(error).__name__} while parsing", None
    if must_act and all(map(_does_nothing, tree.body)):
        what = "it is empty" if not tree.body else "data or an error message instead of a script?"
        return f"does nothing when run: {what}", None
    return "", code


def _does_nothing(node: ast.stmt) -> bool:
    """The text of many error answers ("error", {"message": …}) is an expression that Python silently evaluates, and so is
    JSON; a line of YAML is an annotation."""
    kind = type(node).__name__
    if kind not in ("Expr", "AnnAssign"):
        return False
    if kind == "Expr" and type(node.value).__name__ == "Constant":  # type: ignore[attr-defined]  # a docstring
        return True
    import ast  # which is slow to import

    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return False
    return not any(isinstance(part, ast.Call | ast.Await) for part in ast.walk(node))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    complaint_, code = examined(sys.stdin.buffer.read().decode(), must_act=True, name=sys.argv[1])
    sys.stdout.buffer.write(complaint_.encode(errors="backslashreplace") + b"\0")
    if code is not None:
        sys.stdout.buffer.write(marshal.dumps(code))
