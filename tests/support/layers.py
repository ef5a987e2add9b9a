"""Which file of the package may import which: its layers, and the imports that break them.

They are read from the source, because an import at run time could hide. An import inside a function counts like one at the
top of a file, because it only delays the circle. An import under `if TYPE_CHECKING:` never runs, so it closes no circle, and
two files of one layer may name each other's types. It must still point downwards: a lower layer that names a higher one can
be neither understood nor tested alone.

The `__init__` of a package counts if a name is imported from it, although Python runs it before each of its modules.
"""

from __future__ import annotations

import ast
import functools
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

NAME = "sandboxrun"
GROUND = frozenset(
    "__init__ digests enums errors files health healthpage lifeline log moment nearnames plainjson records timing".split()
)  # files beside the packages

_CONFIG = frozenset({"ground", "config"})
_WIRE = _CONFIG | {"redis", "protocol"}
_SANDBOX = frozenset({"sandbox", "sandbox/compile", "sandbox/supervisor"})
_RUN = _CONFIG | _SANDBOX | {"policy", "redis", "fetch", "packages", "fleet"}
_ALL = (
    _RUN
    | {"modulecache", "installation", "sandbox/selftest", "protocol", "host", "client", "describe", "dev"}
    | {"spec", "spec/schemas", "spec/interface", "sync", "testing"}
)
# The layers that each layer may import besides itself, the lowest first; none imports a later one. A layer is a folder,
# without those folders in it that have a line of their own.
LAYERS: dict[str, frozenset[str]] = {
    "ground": frozenset(),
    "modulecache": frozenset({"ground"}),  # which imports the others faster, and knows none of them
    "installation": frozenset(),  # for whoever says how a package is installed, also in the worker
    "config": frozenset({"ground"}),
    # A file that says what a worker is given and answers. What workers and callers check by it comes first.
    "spec/schemas": frozenset({"ground"}),
    "spec/interface": frozenset({"ground", "spec/schemas"}),
    "spec": _CONFIG | {"spec/schemas", "spec/interface"},
    "sync": frozenset({"ground"}),  # for the operator, and for the plugin inside the sandbox
    "policy": _CONFIG,
    "protocol": _CONFIG,
    "redis": _CONFIG | {"policy"},
    "fetch": _CONFIG,
    "sandbox": frozenset({"ground"}),  # what the next three share: system calls
    # Before the child gets its plan, inside the child, and around it: code that must not be mixed up.
    "sandbox/compile": _CONFIG | {"sandbox"},
    "sandbox/child": frozenset({"modulecache", "installation"}),
    "sandbox/supervisor": _CONFIG | {"sandbox", "sandbox/compile"},
    "sandbox/selftest": _CONFIG | {"sandbox", "sandbox/compile", "sandbox/supervisor"},
    # What a lock asks for; its unpack.py runs inside the sandbox and imports nothing of ours.
    "packages": _CONFIG | _SANDBOX | {"fetch", "installation"},
    # Code that runs inside a worker, or in another program: it uses nothing that belongs to the operator.
    "worker": _WIRE | {"spec/schemas", "spec/interface"},
    "client": _WIRE | {"spec/schemas", "spec/interface"},
    "fleet": _CONFIG
    | {"redis", "protocol"},  # what Redis says about all workers; below the host, which runs and stops its own
    "host": _RUN | {"modulecache"},
    "describe": _RUN | {"installation", "sandbox/selftest", "host", "protocol"},
    "dev": _RUN | {"host", "packages"},
    "testing": _CONFIG | {"spec", "spec/schemas", "spec/interface", "redis", "protocol", "dev"},
    "cli": _ALL,
    "__main__": frozenset({"cli"}),
}

# What the package itself offers to scripts, and imports when one asks for it. Who imports `__version__` does not.
OFFERED = frozenset({("__init__.py", "client/services.py")})


class Import(NamedTuple):
    """`file` imports `imported`; both are paths relative to the package. `types`: under TYPE_CHECKING."""

    file: str
    line: int
    imported: str
    types: bool


def layer_of(file: str) -> str | None:
    """The layer of a path relative to the package, such as `config/keys.py`; None without one."""
    path = file.removesuffix(".py")
    if path in GROUND:
        return "ground"
    parts = path.split("/")
    names = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in LAYERS and name != "ground"), None)


def imports(package: Path) -> list[Import]:
    """All imports between files of the folder `package`, by file and line."""
    files = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}
    found = []
    for file, path in files.items():
        for line, name, types in _named(path.read_text()):
            found += [Import(file, line, each, types) for each in _files(name, files) if each != file]
    return list(dict.fromkeys(found))


def faults(package: Path) -> list[str]:
    """A line for each import that does not point downwards: `redis/tls.py:8: redis must not import host/run.py`."""
    return [*_homeless(package), *_upward(imports(package)), *(_shown(each) for each in circles(package))]


def _homeless(package: Path) -> Iterator[str]:
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        if layer_of(file) is None:
            yield f"{file}: is in no layer"


def _upward(found: Iterable[Import]) -> Iterator[str]:
    for each in found:
        mine, theirs = layer_of(each.file), layer_of(each.imported)
        if (each.file, each.imported) in OFFERED:
            continue
        if mine is not None and theirs is not None and mine != theirs and theirs not in LAYERS[mine]:
            yield f"{each.file}:{each.line}: {mine} must not import {each.imported}"


def circles(package: Path) -> list[tuple[str, ...]]:
    """The shortest circle that each import closes, if it closes one. A circle begins with its first file by name."""
    graph: dict[str, set[str]] = {}
    for each in imports(package):
        if not each.types:
            graph.setdefault(each.file, set()).add(each.imported)
    _prune(graph)
    found = set()
    for file, others in graph.items():
        for other in others:
            back = _way(graph, other, file)
            if back:
                first = back.index(min(back))
                found.add((*back[first:], *back[:first]))
    return sorted(found)


def _prune(graph: dict[str, set[str]]) -> None:
    """Remove the files that import no other one left, or that no other one imports: they are in no circle."""
    before = -1
    while before != len(graph):
        before = len(graph)
        imported = set().union(*graph.values())
        for file in [file for file, others in graph.items() if file not in imported or not others & graph.keys()]:
            del graph[file]
        for file in graph:
            graph[file] &= graph.keys()


def _way(graph: dict[str, set[str]], start: str, end: str) -> tuple[str, ...]:
    """The shortest path of imports from `start` to `end`, both included; () without one."""
    came_from: dict[str, str | None] = {start: None}
    waiting = deque([start])
    while waiting:
        file = waiting.popleft()
        if file == end:
            way = [file]
            while (before := came_from[way[-1]]) is not None:
                way.append(before)
            return tuple(reversed(way))
        for other in sorted(graph[file] - came_from.keys()):
            came_from[other] = file
            waiting.append(other)
    return ()


def _shown(circle: tuple[str, ...]) -> str:
    return f"circle: {' -> '.join((*circle, circle[0]))}"


def _files(name: str, files: Iterable[str]) -> list[str]:
    """The files that a dotted name stands for: `sandboxrun.a.b` is a/b.py, a/b/__init__.py, or b in a/__init__.py.

    A name that ends with `*` stands for all modules of a package.
    """
    parts = name.split(".")[1:]
    if parts and parts[-1] == "*":
        folder = "/".join(parts[:-1])
        return [file for file in files if file.rpartition("/")[0] == folder and not file.endswith("__init__.py")]
    for count in range(len(parts), -1, -1):
        path = "/".join(parts[:count])
        for file in (f"{path}.py", f"{path}/__init__.py".lstrip("/")):
            if file in files:
                return [file]
    return []


@functools.lru_cache(maxsize=2048)  # tests ask for the same sources again and again
def _named(source: str) -> tuple[tuple[int, str, bool], ...]:
    """Line, dotted name, and whether it is for types only, of each import from the package. Raises SyntaxError."""
    tree = ast.parse(source)
    types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and _is_type_checking(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    return tuple(
        (node.lineno, name, id(node) in types)
        for node in ast.walk(tree)
        for name in _names(node)
        if name.split(".")[0] == NAME
    )


def _is_type_checking(test: ast.expr) -> bool:
    return _last(test) == "TYPE_CHECKING"


def _last(node: ast.expr) -> str:
    """The name, or the last part of a dotted name."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _names(node: ast.AST) -> Iterator[str]:
    """The dotted names that a statement or a call imports; `from a import b` gives a.b."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        if node.level:
            raise SyntaxError(f"line {node.lineno}: a relative import")
        # `import *` takes what the package itself has, not its modules.
        yield from (f"{node.module}.{alias.name}".removesuffix(".*") for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and _last(node.func) in ("__import__", "import_module"):
        argument = node.args[0]
        if isinstance(argument, ast.JoinedStr):  # f"sandboxrun.cli.{name}": any of them
            start = argument.values[0]
            argument = ast.Constant(f"{start.value}*") if isinstance(start, ast.Constant) else argument
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield argument.value
