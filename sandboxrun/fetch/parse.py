"""Whether a text is a script.

A downloaded text is parsed by this file as a program, within limits of its own, because a megabyte of hostile text can cost
Python's parser seconds and a gigabyte. Standard input has the text, and the arguments are the file name for its code, and how long
the code may be. Standard output gets the complaint, a NUL, and the marshalled code; one of the two is empty, or both if the code is
longer. Imports nothing of the project.
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
COMPLAINT_MAX_BYTES = 1024
_ONLY_AST = 0x400  # ast.PyCF_ONLY_AST: ast itself takes longer to be imported than a script to be parsed


def complaint(text: str, *, must_act: bool) -> str:
    """What is wrong with `text` as a script that does something, to complete "the file …"; empty if nothing is."""
    return examined(text, must_act=must_act)[0]


def examined(text: str, *, must_act: bool, name: str | None = None) -> tuple[str, CodeType | None]:
    """The complaint, and the code if a file name is given."""
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
        reason = "it is empty" if not tree.body else "it has only data, or an error message"
        return f"does nothing when run: {reason}", None
    return "", code


def _does_nothing(node: ast.stmt) -> bool:
    """Whether a statement is only evaluated: the text of many error answers ("error", {"message": …}) and JSON are expressions,
    and a line of YAML is an annotation."""
    kind = type(node).__name__
    if kind not in ("Expr", "AnnAssign"):
        return False
    if kind == "Expr" and type(node.value).__name__ == "Constant":  # type: ignore[attr-defined]  # a docstring
        return True
    import ast  # which is slow to import

    if isinstance(node, ast.AnnAssign) and node.value is not None:
        return False
    return not any(isinstance(part, ast.Call | ast.Await) for part in ast.walk(node))


def _marshalled(code: CodeType | None, max_bytes: int) -> bytes:
    """Empty if it is longer, or cannot be marshalled: the child compiles the script."""
    try:
        data = marshal.dumps(code) if code is not None else b""
    except (ValueError, MemoryError):
        return b""
    return data if len(data) <= max_bytes else b""


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    complaint_, code = examined(sys.stdin.buffer.read().decode(), must_act=True, name=sys.argv[1])
    # A message of the parser has names from the text, and a name may be as long as the text.
    shortened = complaint_[: COMPLAINT_MAX_BYTES // 10]
    sys.stdout.buffer.write(shortened.encode(errors="backslashreplace") + b"\0" + _marshalled(code, int(sys.argv[2])))
