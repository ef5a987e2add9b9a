"""A worker's own spec.json is enforced: by the SDK before the handler and after it, and by callers that have it at hand."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from raw_host import RawHost, body
from runner import Done, Runner

from sandboxrun import client

WORKERS = Path(__file__).parent / "workers"
SPEC: dict[str, Any] = {
    "type": "t",
    "$defs": {"count": {"type": "integer", "minimum": 1}},
    "request": {
        "type": "object",
        "properties": {"n": {"$ref": "#/$defs/count"}, "answer": {}, "code": {"pattern": "^(a+)+$"}},
        "required": ["n"],
        "additionalProperties": False,
    },
    "reply": {"type": "object", "properties": {"total": {"type": "integer"}, "at": {"type": "null"}}},
}
OF = {"type": "object", "properties": {"item": {"type": "string", "minLength": 1}, "answer": {}}, "required": ["item"]}
CENTS = {"type": "object", "properties": {"cents": {"type": "integer"}}, "required": ["cents"]}
SERVICES: dict[str, Any] = {
    "type": "shop",
    "methods": {
        "price.of": {"request": OF, "reply": CENTS},
        "price.later": {"request": OF, "reply": CENTS},
        "shop.ask": {},
        "shop.aask": {},
    },
}
REFUSED = "the request's data is not as expected: "
BROKEN = "the handler's result is not as its spec.json says: "


def folder(tmp_path: Path, script: str, spec: Any, name: str = "worker") -> Path:
    """With a worker and its spec, which is JSON or text."""
    made = tmp_path / name
    made.mkdir()
    shutil.copy(WORKERS / script, made / "worker.py")
    if spec is not None:
        (made / "spec.json").write_text(spec if isinstance(spec, str) else json.dumps(spec))
    return made


def asked(
    r: redis.Redis, run: Runner, source: Path, requests: list[Any], **fields: str
) -> tuple[list[dict[str, Any]], Done]:
    """The replies to some requests, after one run."""
    given = {"url": str(source), "version": "local", "requestLimit": str(len(requests)), "allowRedis": "kept:*"}
    r.hset("t:1:h", mapping={**given, **fields})
    refs = [client.send(r, "t", data, now="x") for data in requests]
    done = run("--yes", "t", "1")
    replies = [client.wait(r, ref, timeout_seconds=1) or {} for ref in refs]
    return replies, done


def message(reply: dict[str, Any]) -> tuple[int, str]:
    return reply["code"], reply.get("err", {}).get("message", "")


@pytest.mark.parametrize("way", ["serial", "threads", "async"])
def test_a_request_that_does_not_fit_never_reaches_the_handler(
    r: redis.Redis, run: Runner, tmp_path: Path, way: str
) -> None:
    bad: list[tuple[Any, str]] = [
        ({"n": 0}, "data.n: the value is less than the minimum of 1"),
        ({"n": "secret"}, 'data.n: the value is not of type "integer"'),
        ({"answer": 1}, 'data: "n" is a required property'),
        ({"n": 1, "m": 2}, "data: Additional properties are not allowed ('m' was unexpected)"),
        ([1], 'data: the value is not of type "object"'),
        ({"n": 1, "code": "a" * 900_000 + "b"}, 'data.code: the value does not match "^(a+)+$"'),
    ]
    replies, done = asked(r, run, folder(tmp_path, "checked.py", SPEC), [*(data for data, _ in bad), {"n": 5}], way=way)
    assert done.code == 0, done.err
    assert [message(reply) for reply in replies[:-1]] == [(400, REFUSED + text) for _, text in bad]
    assert replies[-1]["total"] == 5
    assert done.out.split() == ["handled", "5"]
    assert "secret" not in done.err


@pytest.mark.parametrize("way", ["serial", "threads", "async"])
def test_a_result_that_breaks_the_schema_is_500_and_nothing_is_written(
    r: redis.Redis, run: Runner, tmp_path: Path, way: str
) -> None:
    (reply,), done = asked(r, run, folder(tmp_path, "checked.py", SPEC), [{"n": 7, "answer": "private"}], way=way)
    assert message(reply) == (500, BROKEN + 'reply.total: the value is not of type "integer"')
    assert r.exists("kept:h") == 0
    assert BROKEN in done.err and "private" not in done.err.replace(str(tmp_path), "")
    assert done.code == 0


def test_a_handler_that_tells_methods_apart_is_asked_only_for_those_of_the_spec(
    r: redis.Redis, run: Runner, tmp_path: Path
) -> None:
    spec = {"type": "t", "methods": {"place": {"request": {"properties": {"n": {"minimum": 1}}}}}}
    source = folder(tmp_path, "checked.py", spec)
    entries = [{"method": "plase"}, {}, {"method": "place", "data": '{"n": 0}'}, {"method": "place"}]
    for number, entry in enumerate(entries):
        r.xadd("t:req:x", {"ref": f"m{number}", "type": "t", "data": '{"n": 5}', **entry})
    given = {"url": str(source), "version": "local", "requestLimit": "4", "allowRedis": "kept:*", "way": "serial"}
    r.hset("t:1:h", mapping=given)
    done = run("--yes", "t", "1")
    replies = [json.loads(r.lpop(f"res:m{number}")) for number in range(4)]
    assert [reply["code"] for reply in replies] == [404, 400, 400, 200], replies
    assert done.out.split() == ["handled", "5"]


def test_the_spec_is_asked_before_the_type_of_the_payload(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    spec = {"type": "t", "request": {"properties": {"n": {"maximum": 9}}}}
    source = folder(tmp_path, "checked.py", spec)
    replies, _ = asked(r, run, source, [{"n": 10}, {"n": "x"}, {"n": 1}], way="typed")
    assert message(replies[0]) == (400, REFUSED + "data.n: the value is greater than the maximum of 9")
    assert message(replies[1])[1].startswith(REFUSED + "field n: expected a whole number")
    assert replies[2]["total"] == 1


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("{", "spec.json is not JSON: "),
        ({"type": "t", "requst": {}}, "spec.json has 'requst', which is no part of it, did you mean request?"),
        ({"request": {"properties": {"n": {"type": "int"}}}}, "spec.json: request.properties.n.type is not a JSON Schema"),
        ({"request": {"$ref": "http://127.0.0.1:1/x.json"}}, "is in another file: expected #/$defs/NAME"),
        ({"reply": {"$ref": "file:///etc/hostname"}}, "is in another file: expected #/$defs/NAME"),
        ({"request": {"pattern": "(?=a)b"}}, 'is not a "regex" (without look-around and back-references)'),
    ],
)  # fmt: skip
def test_a_malformed_spec_ends_the_worker_with_one_line(
    r: redis.Redis, run: Runner, tmp_path: Path, spec: Any, text: str
) -> None:
    r.hset("t:1:h", mapping={"url": str(folder(tmp_path, "checked.py", spec)), "version": "local", "way": "serial"})
    done = run("t", "1")
    assert done.code == 65
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and text in errors[0], done.err
    assert "Traceback" not in done.err


def test_a_hostile_request_neither_ends_the_worker_nor_holds_it_up(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    """The schema contains itself, has alternatives, and evaluates the rest: what recurses most, and has most errors."""
    anything = {
        "anyOf": [
            {"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 2},
            {"type": "array", "items": {"$ref": "#"}},
            {"type": "array", "items": {"$ref": "#"}, "maxItems": 1},
            {"type": "string", "maxLength": 5},
        ],
        "unevaluatedProperties": False,
    }
    deep, nested = "[" * 900 + "]" * 900, "[" * 90 + "7" + "]" * 90
    texts = [
        deep,
        nested,
        json.dumps("x" * 1_000_000),
        "9" * 4000,
        "[1e308,-1e308]",
        json.dumps([7] * 300_000),
        '"fits"',
    ]
    source = folder(tmp_path, "checked.py", {"type": "t", "request": anything})
    r.hset("t:1:h", mapping={"url": str(source), "version": "local", "requestLimit": str(len(texts)), "way": "plain"})
    (source / "worker.py").write_text(
        "from sandboxrun import worker\nworker.handler(lambda request: {'ok': 1})\nworker.run()\n"
    )
    refs = [f"h{number}" for number in range(len(texts))]
    for ref, text in zip(refs, texts, strict=True):
        r.xadd("t:req:x", {"ref": ref, "type": "t", "data": text})
    done = run("--yes", "t", "1")
    replies = [client.wait(r, ref, timeout_seconds=1) or {} for ref in refs]
    assert done.code == 0, done.err
    assert [reply["code"] for reply in replies] == [400] * 6 + [200]
    limit = "data: it is nested too deeply: at most 100 objects and lists in one another"
    assert message(replies[0]) == (400, REFUSED + limit)
    assert message(replies[1]) == (400, REFUSED + "data: it does not fit the schema")
    assert max(len(message(reply)[1]) for reply in replies) < 300


PAGE = Path(__file__).parents[2] / "docs/writing-workers.md"


def test_the_page_about_checks(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    page = PAGE.read_text().partition("## Check requests by a schema")[2].partition("\n## ")[0]
    spec, shown = (block.partition("```")[0] for block in page.split("```json\n")[1:] + page.split("```console\n")[1:])
    command, printed = shown.splitlines()
    source = folder(tmp_path, "checked.py", spec)
    code = "from sandboxrun import worker\nworker.handler(lambda request: {'total': 0.5})\nworker.run()\n"
    (source / "worker.py").write_text(code)
    r.hset("count:1:h", mapping={"url": str(source), "version": "local", "requestLimit": "2"})
    with run.start("--yes", "count", "1"):
        found = json.loads(run(*command.split()[2:]).out)
        assert (found["code"], {"err": found["err"]}) == (400, json.loads(printed))
        assert f"`{json.loads(run('call', 'count', 'n=1').out)['err']['message']}`" in page


# --- services


@contextlib.contextmanager
def serving(r: redis.Redis, run: Runner, source: Path, **services: str) -> Iterator[list[Path]]:
    with contextlib.ExitStack() as stack:
        for type_, served in services.items():
            fields = {"url": str(source), "version": "local", "services": served, "allowCall": "price"}
            r.hset(f"{type_}:1:h", mapping=fields)
            stack.enter_context(run.start("--yes", type_, "1"))
        yield []


CALLS = [
    ("of", {"item": "tea"}),
    ("of", {"item": ""}),
    ("of", {"item": 5}),
    ("of", {}),
    ("of", {"item": "tea", "answer": "dear"}),
    ("later", {"item": "tea"}),
    ("hidden", {}),
    ("off", {"item": "tea"}),
]
OUTCOMES = [
    ("", ""),
    ("BadRequest", REFUSED + "data.item: the value is shorter than 1 character"),
    ("BadRequest", REFUSED + 'data.item: the value is not of type "string"'),
    ("BadRequest", REFUSED + 'data: "item" is a required property'),
    ("RemoteError", BROKEN + 'reply.cents: the value is not of type "integer"'),
    ("RemoteError", BROKEN + 'reply.cents: the value is not of type "integer"'),
    ("UnknownMethod", "price has no method 'hidden'"),
    ("UnknownMethod", "price has no method 'off', did you mean "),
]


@pytest.mark.parametrize("services", [{"shop": "shop,price"}, {"shop": "shop", "price": "price"}], ids=["one", "two"])
@pytest.mark.parametrize("method", ["ask", "aask"])
def test_services_check_calls_alike_in_one_process_and_over_redis(
    r: redis.Redis, run: Runner, tmp_path: Path, redis_url: str, services: dict[str, str], method: str
) -> None:
    source = folder(tmp_path, "checked_services.py", SERVICES)
    with serving(r, run, source, **services), client.Client(redis_url) as c:
        found = [
            c.call("shop", {"method": name, "data": data}, method=f"shop.{method}", timeout=30) for name, data in CALLS
        ]
    assert found[0]["value"] == {"cents": 250}
    assert [(each.get("kind", ""), each["sent"] if "kind" in each else None) for each in found] == [
        (kind, True if kind else None) for kind, _ in OUTCOMES
    ]
    for each, (_, text) in zip(found, OUTCOMES, strict=True):
        assert text in each.get("text", "")


@pytest.mark.parametrize("method", ["ask", "aask"])
def test_a_caller_with_the_spec_sends_nothing_that_does_not_fit(
    r: redis.Redis, run: Runner, tmp_path: Path, redis_url: str, method: str
) -> None:
    """The callee has none; the caller finds the file beside its script."""
    spec = {"type": "price", "methods": {"of": {"request": OF, "reply": CENTS}, "later": {"reply": CENTS}}}
    source = folder(tmp_path, "checked_services.py", None)
    (source / "price.json").write_text(json.dumps(spec))
    services = {"shop": "shop", "price": "price"}
    with serving(r, run, source, **services), client.Client(redis_url) as c:
        data = [{"method": name, "data": data, "spec": "price.json"} for name, data in CALLS]
        found = [c.call("shop", each, method=f"shop.{method}", timeout=30) for each in data]
        count = r.xinfo_stream("price:req:x")["entries-added"]
    assert found[0]["value"] == {"cents": 250}
    result = 'of {} is not as its spec.json says: reply.cents: the value is not of type "integer"'
    assert [each.get("text") for each in found[1:]] == [
        *(f"price was not called: {text}" for _, text in OUTCOMES[1:4]),
        "the result of price.of is not as its spec.json says: " + result.partition("says: ")[2],
        "the result of price.later is not as its spec.json says: " + result.partition("says: ")[2],
        "price has no method 'hidden': expected later or of",
        "price has no method 'off', did you mean of?",
    ]
    assert [each.get("kind") for each in found[1:]] == [kind for kind, _ in OUTCOMES[1:]]
    assert count == 3


def test_a_spec_with_a_method_that_the_script_does_not_have_ends_the_worker(
    r: redis.Redis, run: Runner, tmp_path: Path
) -> None:
    spec = {"type": "shop", "methods": {"price.off": {}}}
    source = folder(tmp_path, "checked_services.py", spec)
    r.hset("t:1:h", mapping={"url": str(source), "version": "local"})
    done = run("t", "1")
    assert done.code == 65
    assert "methods has 'price.off', which the script does not have, did you mean price.of?" in done.err


# --- where the file is


def test_a_script_by_url_has_the_spec_that_its_block_pins(r: redis.Redis, run: Runner, host: RawHost) -> None:
    spec = json.dumps({"type": "t", "request": {"required": ["n"]}})
    digest = hashlib.sha256(spec.encode()).hexdigest()
    code = "from sandboxrun import worker\nworker.handler(lambda request: {'n': 1})\nworker.run()\n"
    block = f'# /// script\n# [tool.sandboxrun]\n# files = {{ "spec.json" = "sha256:{digest}" }}\n# ///\n'
    host.files["/v1/worker.py"] = block + code
    host.files["/v1/spec.json"] = body(spec.encode(), "application/json")
    fields = {"url": host.url + "/{version}/worker.py", "version": "v1", "requestLimit": "1"}
    r.hset("t:1:h", mapping=fields)
    ref = client.send(r, "t", {}, now="x")
    done = run("--yes", "t", "1")
    assert done.code == 0, done.err
    assert message(client.wait(r, ref, timeout_seconds=1) or {}) == (400, REFUSED + 'data: "n" is a required property')


MODULES = (
    "from sandboxrun import worker\nworker.handler(lambda request: {})\nworker.run()\nimport sys\nprint(*sys.modules)\n"
)


def test_only_a_worker_with_a_spec_imports_what_reads_it(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    loaded = []
    for spec in (None, SPEC):
        source = folder(tmp_path, "checked.py", spec, f"w{len(loaded)}")
        (source / "worker.py").write_text(MODULES)
        _, done = asked(r, run, source, [{"n": 1}])
        loaded.append(set(done.out.split()))
    assert not {"jsonschema_rs", "sandboxrun.spec", "sandboxrun.worker.checked", "re"} & loaded[0]
    assert {"jsonschema_rs", "sandboxrun.spec.interface", "sandboxrun.worker.checked"} <= loaded[1]
    assert not {"json", "email.utils", "dataclasses", "sandboxrun.spec.model", "sandboxrun.worker.results"} & loaded[1]
