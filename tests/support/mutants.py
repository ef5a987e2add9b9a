"""Mutants of a worker: its source with one small mistake each, made from its AST.

Each operator changes the tree, yields what it has done, and undoes it.
A change keeps the number of replies of a pipeline, because a handler that fails would be caught by every test.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

WRITES = (
    "hset",
    "hincrby",
    "incrby",
    "zincrby",
    "xadd",
    "lpush",
    "rpush",
    "lrem",
    "ltrim",
    "sadd",
    "srem",
    "set",
    "delete",
)
MAKES = ("hset", "hincrby", "incrby", "zincrby", "xadd", "lpush", "rpush", "sadd", "set")  # a key that was not there
ADDS = ("hincrby", "incrby", "zincrby", "xadd", "lpush", "rpush")  # twice is more than once
STRICTER = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
SECONDS = 1000

Changes = Iterator[tuple[ast.AST, str]]


@dataclass(frozen=True, slots=True)
class Mutant:
    """`what`: the changed line before and after."""

    operator: str
    line: int
    what: str
    source: str


class Tree:
    """A module, with what the operators look for."""

    def __init__(self, source: str, prefix: str) -> None:
        """`prefix`: how the worker's keys in Redis begin."""
        self.root, self.prefix = ast.parse(source), prefix
        self.parents = {child: node for node in ast.walk(self.root) for child in ast.iter_child_nodes(node)}

    def all(self, kind: type[ast.AST]) -> list[ast.AST]:
        return [node for node in ast.walk(self.root) if isinstance(node, kind)]

    def calls(self, names: Sequence[str]) -> list[ast.Call]:
        """Those of a method with one of the names."""
        return [call for call in self._calls() if isinstance(call.func, ast.Attribute) and call.func.attr in names]

    def _calls(self) -> Iterator[ast.Call]:
        return (node for node in ast.walk(self.root) if isinstance(node, ast.Call))

    def commands(self, names: Sequence[str]) -> list[ast.Call]:
        """Calls of Redis, as statements."""
        return [call for call in self.calls(names) if isinstance(self.parents[call], ast.Expr)]

    def states(self) -> Iterator[tuple[ast.stmt, ast.expr]]:
        """Each statement that changes a `worker.state`, and the key."""
        for function in self.all(ast.FunctionDef):
            keys = {
                node.targets[0].id: node.value.args[0]
                for node in ast.walk(function)
                if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)
                and isinstance(node.value, ast.Call)
                and ast.unparse(node.value.func) == "worker.state"
            }
            for node in ast.walk(function):
                name = _changed_name(node)
                if name in keys and isinstance(node, ast.stmt):
                    yield node, keys[name]

    def body(self, statement: ast.AST) -> list[ast.stmt]:
        """The list that has the statement."""
        for _, value in ast.iter_fields(self.parents[statement]):
            if isinstance(value, list) and statement in value:
                return value
        raise ValueError(ast.unparse(statement))

    def statement(self, node: ast.AST) -> ast.stmt:
        """The one that has the node; of a pipeline's block the block itself."""
        while not isinstance(node, ast.stmt):
            node = self.parents[node]
        block = self.parents[node]
        return block if isinstance(block, ast.With) else node

    def replaced(self, old: ast.AST, new: ast.AST) -> Changes:
        """One change, which is undone."""
        parent = self.parents[old]
        for name, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, name, new)
                yield old, f"{_line(old)} -> {_line(new)}"
                setattr(parent, name, old)
            elif isinstance(value, list) and old in value:
                at = value.index(old)
                value[at] = new
                yield old, f"{_line(old)} -> {_line(new)}"
                value[at] = old

    def inserted(self, after: ast.stmt, code: str) -> Changes:
        body = self.body(after)
        at = body.index(after) + 1
        body.insert(at, ast.parse(code).body[0])
        yield after, f"{code}  after  {_line(after)}"
        del body[at]


def _changed_name(node: ast.AST) -> str | None:
    """Of the variable that a statement changes, as in `x[y] = z`, `del x[y]` and `x.clear()`."""
    if isinstance(node, ast.Assign | ast.Delete) and isinstance(node.targets[0], ast.Subscript):
        return ast.unparse(node.targets[0].value)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Attribute):
        return ast.unparse(node.value.func.value) if node.value.func.attr == "clear" else None
    return None


def _line(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0]


def _expression(code: str) -> ast.expr:
    return ast.parse(code, mode="eval").body


def _receiver(call: ast.Call) -> str:
    assert isinstance(call.func, ast.Attribute)
    return ast.unparse(call.func.value)


def _arguments(call: ast.Call) -> list[str]:
    return [ast.unparse(each) for each in call.args]


# --- the operators


def off_by_one(tree: Tree) -> Changes:
    for node in tree.all(ast.Constant):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            yield from tree.replaced(node, ast.Constant(node.value + 1))
    for compare in tree.all(ast.Compare):
        assert isinstance(compare, ast.Compare)
        for at, old in enumerate(compare.ops):
            if type(old) in STRICTER:
                before = ast.unparse(compare)
                compare.ops[at] = STRICTER[type(old)]()
                yield compare, f"{before} -> {ast.unparse(compare)}"
                compare.ops[at] = old


def key_forgotten(tree: Tree) -> Changes:
    for call in tree.commands(WRITES):
        yield from tree.replaced(call, _expression(f"{_receiver(call)}.exists({_arguments(call)[0]})"))
    for statement, _ in tree.states():
        yield from tree.replaced(statement, ast.Pass())
    for call in tree.commands(["emit"]):
        yield from tree.replaced(tree.parents[call], ast.Pass())


def wrong_key(tree: Tree) -> Changes:
    for node in [*tree.all(ast.JoinedStr), *tree.all(ast.Constant)]:
        text = node.values[0] if isinstance(node, ast.JoinedStr) else node
        if isinstance(tree.parents[node], ast.JoinedStr) or not isinstance(text, ast.Constant):
            continue
        if isinstance(text.value, str) and text.value.startswith(tree.prefix):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            yield from tree.replaced(node, ast.JoinedStr([*parts, ast.Constant("2")]))


_OTHER_KIND: Mapping[str, str] = {
    "sadd": "rpush({0}, {1})",
    "lpush": "sadd({0}, {1})",
    "rpush": "sadd({0}, {1})",
    "hset": "set({0}, {2})",
    "set": "hset({0}, 'value', {1})",
    "incrby": "rpush({0}, {1})",
    "hincrby": "incrby({0}, {2})",
    "zincrby": "hincrby({0}, {2}, {1})",
    "xadd": "hset({0}, mapping={1})",
}


def wrong_kind(tree: Tree) -> Changes:
    for call in tree.commands(list(_OTHER_KIND)):
        assert isinstance(call.func, ast.Attribute)
        other = _OTHER_KIND[call.func.attr].format(*_arguments(call))
        yield from tree.replaced(call, _expression(f"{_receiver(call)}.{other}"))


def ttl_lost(tree: Tree) -> Changes:
    for call in tree.commands(["expire"]):
        yield from tree.replaced(call, _expression(f"{_receiver(call)}.exists({_arguments(call)[0]})"))
    for call in tree.calls(["set"]):
        if any(keyword.arg == "ex" for keyword in call.keywords):
            yield from tree.replaced(call, ast.Call(call.func, call.args, [k for k in call.keywords if k.arg != "ex"]))


def _keys_made(tree: Tree) -> Iterator[tuple[ast.stmt, str]]:
    """Where a key is written, and the key as code."""
    for call in tree.commands(MAKES):
        yield tree.statement(call), _arguments(call)[0]
    for statement, key in tree.states():
        yield statement, ast.unparse(key)


def ttl_added(tree: Tree) -> Changes:
    for statement, key in _keys_made(tree):
        yield from tree.inserted(statement, f"worker.connect().expire({key}, {SECONDS})")


def extra_key(tree: Tree) -> Changes:
    for statement in dict.fromkeys(statement for statement, _ in _keys_made(tree)):
        yield from tree.inserted(statement, f"worker.connect().set('{tree.prefix}extra', 1)")


def wrong_code(tree: Tree) -> Changes:
    for node in tree.all(ast.Raise):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield from tree.replaced(node, ast.Raise(ast.Call(ast.Name("ValueError"), node.exc.args, [])))
            yield from tree.replaced(node, ast.Pass())


def field_missing(tree: Tree) -> Changes:
    """Of a reply: all objects in what functions return."""
    for returned in tree.all(ast.Return):
        for node in ast.walk(returned):
            if isinstance(node, ast.Dict):
                for at in range(len(node.keys)):
                    keys, values = ([*items[:at], *items[at + 1 :]] for items in (node.keys, node.values))
                    yield from tree.replaced(node, ast.Dict(keys, values))


def wrong_order(tree: Tree) -> Changes:
    for node in tree.all(ast.ListComp):
        yield from tree.replaced(node, _expression(f"{ast.unparse(node)}[::-1]"))
    for call in tree.calls(["lpush", "rpush"]):
        assert isinstance(call.func, ast.Attribute)
        other = ast.Attribute(call.func.value, "rpush" if call.func.attr == "lpush" else "lpush")
        yield from tree.replaced(call, ast.Call(other, call.args, call.keywords))
    for call in [call for call in tree.all(ast.Call) if isinstance(call, ast.Call)]:
        if ast.unparse(call.func) == "sorted":
            yield from tree.replaced(call, call.args[0])
        if any(keyword.arg == "desc" for keyword in call.keywords):
            kept = [keyword for keyword in call.keywords if keyword.arg != "desc"]
            yield from tree.replaced(call, ast.Call(call.func, call.args, kept))


def effect_twice(tree: Tree) -> Changes:
    for call in tree.commands(ADDS):
        assert isinstance(call.func, ast.Attribute)
        again = ast.Call(ast.Attribute(_expression("worker.connect()"), call.func.attr), call.args, call.keywords)
        yield from tree.inserted(tree.statement(call), ast.unparse(again))
    for call in tree.commands(["emit"]):
        yield from tree.inserted(tree.statement(call), ast.unparse(call))
    for statement, _ in tree.states():
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Subscript):
            name = ast.unparse(statement.targets[0].value)
            if name in [node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)]:
                yield from tree.inserted(statement, ast.unparse(statement))


OPERATORS: Mapping[str, Callable[[Tree], Changes]] = {
    "off by one": off_by_one,
    "key forgotten": key_forgotten,
    "wrong key": wrong_key,
    "wrong kind of key": wrong_kind,
    "TTL lost": ttl_lost,
    "TTL added": ttl_added,
    "extra key": extra_key,
    "wrong code": wrong_code,
    "reply field missing": field_missing,
    "wrong order": wrong_order,
    "effect twice": effect_twice,
}


def mutants(source: str, prefix: str) -> list[Mutant]:
    """All of them; no two have the same source."""
    tree, found = Tree(source, prefix), dict[str, Mutant]()
    for operator, changes in OPERATORS.items():
        for node, what in changes(tree):
            changed = ast.unparse(ast.fix_missing_locations(tree.root))
            found.setdefault(changed, Mutant(operator, getattr(node, "lineno", 0), what, changed))
    if ast.unparse(tree.root) != ast.unparse(ast.parse(source)):
        raise AssertionError("an operator has not undone its change")
    return list(found.values())
