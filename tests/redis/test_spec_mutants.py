"""A small mistake in a worker is caught by the tests of its spec.json. All mutants: tests/tools/mutate_workers.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import OPERATORS, mutants
from spec_runs import catchers, failures, run_tests

EXAMPLES = Path(__file__).parents[2] / "examples"
# One of each operator, in the worker with most of them: the worker, its keys, and a part of the change.
CHOSEN = {
    "off by one": ("cart", "basket:", "total > COUNT_MAX -> total >= COUNT_MAX"),
    "key forgotten": ("counter", "count:", "commands.zincrby('count:top:z', reading.pages, reading.user) ->"),
    "wrong key": ("counter", "count:", "'count:log:x' -> f'count:log:x2'"),
    "wrong kind of key": ("cart", "basket:", "-> redis.rpush('basket:open:s', user)"),
    "TTL lost": ("counter", "count:", "commands.expire(day, WEEK_SECONDS) ->"),
    "TTL added": ("counter", "count:", "expire('count:top:z', 1000)"),
    "extra key": ("notify", "told:", "worker.connect().set('told:extra', 1)"),
    "wrong code": ("notify", "told:", "raise worker.BadRequest(str(refusal)) from None -> raise ValueError"),
    "reply field missing": ("notify", "told:", "-> {'cents': cents}"),
    "wrong order": ("cart", "basket:", "redis.lpush(recent, item) -> redis.rpush(recent, item)"),
    "effect twice": ("notify", "told:", "request.emit("),
}
REMEMBERING = """
from sandboxrun import worker
seen = {}
@worker.handler
def handle(request):
    seen[request.data["user"]] = total = seen.get(request.data["user"], 0) + 1
    return {"total": total}
worker.run()
"""
STRICT = """
from sandboxrun import worker
@worker.handler
def handle(request):
    if not 1 < request.data["n"] <= 5:
        raise worker.BadRequest("no")
    return {}
worker.run()
"""


def test_every_operator_has_one() -> None:
    assert list(CHOSEN) == list(OPERATORS)


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_mutant_is_caught_by_the_written_tests(operator: str) -> None:
    name, prefix, what = CHOSEN[operator]
    every = mutants((EXAMPLES / name / "worker.py").read_text(), prefix)
    mutant = next(each for each in every if each.operator == operator and what in each.what)
    beside = [EXAMPLES / "price"] if name == "notify" else []
    written, _ = catchers(run_tests(EXAMPLES / name, mutant.source, beside, with_generated=False))
    assert written


def test_the_workers_themselves_pass_with_generated_tests() -> None:
    for name, beside in (("counter", []), ("cart", []), ("notify", [EXAMPLES / "price"])):
        assert failures(run_tests(EXAMPLES / name, (EXAMPLES / name / "worker.py").read_text(), beside)) == {}


def test_a_worker_that_remembers_is_caught_when_its_test_is_run_again(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    spec = '{"type": "t", "tests": [{"name": "one", "request": {"user": "ann"}, "reply": {"total": 1}}]}'
    (folder / "spec.json").write_text(spec)
    assert failures(run_tests(folder, REMEMBERING)) == {"again: one": ["reply.total: expected 1, got 2"]}


def test_a_bound_that_is_not_that_of_the_schema_is_caught(tmp_path: Path) -> None:
    """The worker refuses 1, and 5 it does not; a refusal of all, as of a bound that a state decides, is no fault."""
    folder = tmp_path / "t"
    folder.mkdir()
    request = (
        '{"properties": {"n": {"type": "integer", "minimum": 1, "maximum": 5}}, "required": ["n"], "type": "object"}'
    )
    (folder / "spec.json").write_text(
        f'{{"type": "t", "request": {request}, "tests": [{{"name": "one", "request": {{"n": 3}}}}]}}'
    )
    found = failures(run_tests(folder, STRICT))
    assert found["generated: request.n is 1"] == [
        'reply.code: expected 200 at the bound of the schema, got 400: "no"; {"n": 2} is answered 200'
    ]
    assert "generated: request.n is 5" not in found
    found = failures(run_tests(folder, STRICT.replace("1 < ", "2 < ")))
    assert "generated: request.n is 1" not in found
