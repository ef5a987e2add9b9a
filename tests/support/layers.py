"""Which file of the package may import which: the layers of the house, and whoever breaks them.

Read from the sources, so that nothing can hide at run time. An import inside a function counts as one at the top does: it
only delays the moment at which the circle closes. Imports under `if TYPE_CHECKING:` never happen, so they close no circle,
and two files of a layer may name each other's types. They must point downwards all the same: whoever reads or changes a
file has to know what it names, and a lower layer that speaks of a higher one cannot be understood, or tested, alone.

A package's `__init__` counts where something is taken from it by name, not because Python runs it before its modules.
"""

from __future__ import annotations

import ast
import functools
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

NAME = "sandboxrun"
GROUND = frozenset("__init__ digests errors files log records timing".split())  # files beside the packages

_CONFIG = frozenset({"ground", "config"})
_WIRE = _CONFIG | {"redis", "protocol"}
_RUN = _CONFIG | {"policy", "redis", "fetch", "sandbox", "sandbox/compile", "sandbox/supervisor", "fleet"}
_ALL = _RUN | {"sandbox/selftest", "protocol", "host", "client", "describe", "dev"}
# What each layer may import beside itself, the lowest first: none imports one that comes after it. A layer is a folder,
# without the folders in it that have a line of their own.
LAYERS: dict[str, frozenset[str]] = {
    "ground": frozenset(),
    "config": frozenset({"ground"}),
    "policy": _CONFIG,
    "protocol": _CONFIG,
    "redis": _CONFIG | {"policy"},
    "fetch": _CONFIG,
    "sandbox": frozenset({"ground"}),  # what both of these share: system calls
    # Before the child is told, inside the child, and around it: three processes' worth of code that must not be mixed up.
    "sandbox/compile": _CONFIG | {"sandbox"},
    "sandbox/child": frozenset(),
    "sandbox/supervisor": _CONFIG | {"sandbox", "sandbox/compile"},
    "sandbox/selftest": _CONFIG | {"sandbox", "sandbox/compile", "sandbox/supervisor"},
    # What runs inside a worker, or in somebody else's program: nothing of the operator's.
    "worker": _WIRE,
    "client": _WIRE,
    "fleet": _CONFIG
    | {"redis", "protocol"},  # what Redis says of all workers: below the host, which runs and stops its own
    "host": _RUN,
    "describe": _RUN | {"sandbox/selftest", "host", "protocol"},
    "dev": _RUN | {"host"},
    "cli": _ALL,
    "__main__": frozenset({"cli"}),
}


class Import(NamedTuple):
    """One import of a file of ours by another; both are paths relative to the package. `types`: under TYPE_CHECKING."""

    file: str
    line: int
    imported: str
    types: bool


def layer_of(file: str) -> str | None:
    """The layer of a path relative to the package, `config/keys.py`; None if it has none."""
    path = file.removesuffix(".py")
    if path in GROUND:
        return "ground"
    parts = path.split("/")
    names = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((name for name in names if name in LAYERS and name != "ground"), None)


def imports(package: Path) -> list[Import]:
    """All imports of ours in the folder `package`, by file and line."""
    files = {path.relative_to(package).as_posix(): path for path in sorted(package.rglob("*.py"))}
    found = []
    for file, path in files.items():
        for line, name, types in _named(path.read_text()):
            found += [Import(file, line, each, types) for each in _files(name, files) if each != file]
    return list(dict.fromkeys(found))


def faults(package: Path) -> list[str]:
    """One line for each import that does not go down: `redis/tls.py:8: redis must not import host/run.py`."""
    return [*_homeless(package), *_upward(imports(package)), *(_shown(each) for each in circles(package))]


def _homeless(package: Path) -> Iterator[str]:
    for path in sorted(package.rglob("*.py")):
        file = path.relative_to(package).as_posix()
        if layer_of(file) is None:
            yield f"{file}: is in no layer"


def _upward(found: Iterable[Import]) -> Iterator[str]:
    for each in found:
        mine, theirs = layer_of(each.file), layer_of(each.imported)
        if mine is not None and theirs is not None and mine != theirs and theirs not in LAYERS[mine]:
            yield f"{each.file}:{each.line}: {mine} must not import {each.imported}"


def circles(package: Path) -> list[tuple[str, ...]]:
    """Each import that is part of a circle gives the shortest one that it closes; each begins with the first by name."""
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
    """Leave those only that import, and are imported by, others of them: the rest is in no circle."""
    before = -1
    while before != len(graph):
        before = len(graph)
        imported = set().union(*graph.values())
        for file in [file for file, others in graph.items() if file not in imported or not others & graph.keys()]:
            del graph[file]
        for file in graph:
            graph[file] &= graph.keys()


def _way(graph: dict[str, set[str]], start: str, end: str) -> tuple[str, ...]:
    """The files from `start` to `end`, both included, by the fewest imports; () if there is no way."""
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
    """The files that the dotted `name` stands for: `sandboxrun.a.b` is a/b.py, a/b/__init__.py or b of a/__init__.py.

    With `*` as its last part, all modules of a package.
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


@functools.lru_cache(maxsize=2048)  # tests ask again and again for sources that have not changed
def _named(source: str) -> tuple[tuple[int, str, bool], ...]:
    """Line, dotted name and whether it is for types only, of each import of ours. Raises SyntaxError."""
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
    """The name itself, or the last part of a dotted one."""
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _names(node: ast.AST) -> Iterator[str]:
    """Dotted names that a statement or a call imports; `from a import b` gives a.b."""
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
