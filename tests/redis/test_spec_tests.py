"""sandboxrun test: the tests of a spec.json, against the real worker in the sandbox, on a real Redis."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from arena import wait_for
from runner import Done, Runner

ROOT = Path(__file__).parents[2]
WORKER = """\
import os, sys, time
from sandboxrun import worker
r = worker.connect()
@worker.handler
def handle(request):
    data = request.data
    for command in data.get("redis", ()):
        r.execute_command(*command)
    if "exit" in data:
        os._exit(data["exit"])
    if "sleep" in data:
        time.sleep(data["sleep"])
    if "print" in data:
        print(worker.secrets()[data["print"]], flush=True)
        raise RuntimeError(worker.secrets()[data["print"]])
    if "bad" in data:
        raise worker.BadRequest(data["bad"])
    return data.get("reply", {})
worker.run()
"""


@pytest.fixture
def home(tmp_path: Path) -> Runner:
    return Runner("", tmp_path)


def folder(home: Runner, *tests: dict[str, Any], name: str = "t", worker: str = WORKER, **spec: Any) -> Path:
    path = home.home / name
    path.mkdir()
    (path / "worker.py").write_text(worker)
    named = [{"name": f"test {number}", **test} for number, test in enumerate(tests)]
    spec = {"type": name, "grants": {"allowRedis": "a*"}, "tests": named, **spec}
    (path / "spec.json").write_text(json.dumps(spec))
    return path


def lines(done: Done) -> list[str]:
    """The faults of the first test that has some."""
    return [line.strip() for line in done.out.splitlines() if line.startswith("        ")]


def redis(*commands: list[str]) -> dict[str, Any]:
    return {"redis": commands}


KINDS = [
    ("a:h", {"n": 1}, ["HINCRBY", "a:h", "n", "1"], {"n": 2}, 'a:h.n: expected "1", got "2"'),
    ("a:s", [1], ["SADD", "a:s", "2"], [1, 2], 'a:s: expected no member "2", got it'),
    ("a:z", {"b": 1}, ["ZADD", "a:z", "2", "b"], {"b": 2}, "a:z.b: expected the score 1, got 2"),
    ("a:q", [1], ["RPUSH", "a:q", "2"], [1, 2], 'a:q[1]: expected nothing, got "2"'),
    ("a:x", [{"b": 1}], ["XADD", "a:x", "*", "b", "2"], [{"b": 1}, {"b": 2}], 'a:x[1]: expected no entry, got {"b": "2"}'),
    ("a", "1", ["SET", "a", "2"], "2", 'a: expected "1", got "2"'),
    ("a", {"$base64": "/w=="}, ["SET", "a", "2"], 2, 'a: expected the bytes "/w==" in base64, got "2"'),
    ("a", "1", ["EXPIRE", "a", "60"], {"$value": 1, "$ttl": 60}, "a: expected no time to live, got 60 s"),
    ("a", {"$value": 1, "$ttl": 60}, ["PERSIST", "a"], 1, "a: expected 60 s to live, got no time to live"),
    ("a", {"$value": 1, "$ttl": 60}, ["EXPIRE", "a", "90"], {"$value": 1, "$ttl": 90}, "a: expected 60 s to live, got 90 s to live"),
    ("a", "1", ["DEL", "a"], None, "a: expected a string, got no key"),
]  # fmt: skip


def test_an_empty_stream_is_a_key(home: Runner) -> None:
    made = redis(["XGROUP", "CREATE", "a:x", "g", "0", "MKSTREAM"])
    emptied = {"before": {"a:x": [{"$id": "1-1", "f": 1}]}, "request": redis(["XDEL", "a:x", "1-1"])}
    folder(home, {"request": made}, {"request": made, "after": {"a:x": []}}, {**emptied, "after": {"a:x": []}}, emptied)
    done = home("test", "t")
    assert done.out.splitlines()[-1].startswith("2 passed, 2 failed")
    assert [line for line in done.out.splitlines() if "a:x: " in line] == [
        "        a:x: was made by the request, and is not in after: []",
        "        a:x: was changed by the request, and is not in after: []",
    ]


def test_each_kind_of_key_passes_and_fails(home: Runner) -> None:
    folder(
        home,
        *[
            test
            for key, before, command, after, _ in KINDS
            for test in (
                {"before": {key: before}, "request": redis(command), "after": {key: after}},
                {"before": {key: before}, "request": redis(command), "after": {key: before}},
                {"before": {key: before}, "after": {key: before}},
                {"before": {key: before}},
            )
        ],
    )
    done = home("test", "t", "--json")
    assert done.code == 1, done
    tests = json.loads(done.out)[0]["tests"]
    for (_, _, _, _, fault), found in zip(KINDS, zip(*[iter(tests)] * 4, strict=True), strict=True):
        for test in found:
            test["faults"] = [fault.replace("59.99", "60").replace("89.99", "90") for fault in test["faults"]]
        got = found[1]["faults"]
        assert [test["passed"] for test in found] == [True, False, True, True], found
        assert len(got) == 1 and got[0].split(" s")[0][:24] == fault.split(" s")[0][:24], (got, fault)


def test_every_key_that_a_request_changes_must_be_named(home: Runner) -> None:
    folder(
        home,
        {
            "before": {"a:old:h": {"n": 1}, "a:gone": "x"},
            "request": redis(["SET", "a:new", "1"], ["HSET", "a:old:h", "n", "2"], ["DEL", "a:gone"]),
        },
    )
    done = home("test", "t")
    assert (done.code, lines(done)) == (
        1,
        [
            "a:gone: was removed by the request, and is not in after",
            "a:new: was made by the request, and is not in after: 1",
            'a:old:h: was changed by the request, and is not in after: {"n": 2}',
        ],
    )


def test_a_key_that_is_written_again_as_it_was_has_not_changed(home: Runner) -> None:
    """Although its dump differs: fields and members are in another order."""
    before = {"a:h": {"b": 1, "c": 2}, "a:s": ["x", "y"], "a:q": [1, 2]}
    again = [["HDEL", "a:h", "b"], ["HSET", "a:h", "b", "1"], ["SREM", "a:s", "x"], ["SADD", "a:s", "x"]]
    folder(
        home,
        {"before": before, "request": redis(*again)},
        {"before": before, "request": redis(["LPOP", "a:q"], ["RPUSH", "a:q", "1"])},
        {"before": before, "request": redis(*again, ["EXPIRE", "a:h", "60"])},
    )
    done = home("test", "t")
    assert (done.code, lines(done)) == (
        1,
        [
            "a:q: was changed by the request, and is not in after: [2, 1]",
            'a:h: was changed by the request, and is not in after: {"$value": {"c": 2, "b": 1}, "$ttl": 60}',
        ],
    )


def test_replies_and_their_codes(home: Runner) -> None:
    reply = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    folder(
        home,
        {"request": {"reply": {"n": 1, "m": 2}}, "reply": {"n": 1}},
        {"request": {"reply": {"n": 1}}, "reply": {"n": 2}},
        {"request": {"reply": {"n": "1"}}},
        {"request": {"bad": "no"}, "reply": {"code": 400, "err": {"message": "no"}}},
        {"request": {"bad": "no"}},
        {"request": {"reply": {"n": 1}}, "reply": {"code": 400}},
        reply=reply,
    )
    done = home("test", "t", "--json")
    tests = json.loads(done.out)[0]["tests"]
    faults = [test["faults"] for test in tests]
    assert faults[0] == faults[3] == []
    assert faults[1] == ["reply.n: expected 2, got 1"]
    assert len(faults[2]) == 1 and "n" in faults[2][0]
    assert faults[4] == ['reply.code: expected 200, got 400: "no"']
    assert faults[5] == ["reply.code: expected 400, got 200"]


def test_a_worker_that_ends_or_hangs_fails_its_test_and_no_other(home: Runner) -> None:
    folder(
        home,
        {"request": {"exit": 3}},
        {"request": {"reply": {"a": 1}}, "reply": {"a": 1}},
        {"request": {"sleep": 60}, "timeout": 0.5},
        {"request": {"reply": {"a": 2}}, "reply": {"a": 2}},
    )
    done = home("test", "t", "-v")
    assert done.code == 1
    assert "the worker ended with exit code 3" in done.out
    assert "no reply within 0.5 s: the worker was killed" in done.out
    assert done.out.splitlines()[-1].startswith("2 passed, 2 failed in ")


def test_a_worker_that_does_not_start_says_why(home: Runner) -> None:
    folder(home, {}, worker="import nothing_of_this_name\n")
    done = home("test", "t")
    assert (done.code, done.out.count("FAIL")) == (1, 1)
    assert "the worker does not start: it ended with exit code 1" in done.out
    assert "| ModuleNotFoundError: No module named 'nothing_of_this_name'" in done.out


def test_secrets_are_given_and_never_shown(home: Runner) -> None:
    folder(home, {"request": {"print": "TOKEN"}}, secrets={"TOKEN": "swordfish-7"})
    for options in (["-v"], ["--json"], ["--junit", "out.xml"]):
        done = home("test", "t", *options)
        assert done.code == 1
        assert "swordfish-7" not in done.out + done.err
    assert "swordfish-7" not in (home.home / "out.xml").read_text()


def test_a_fresh_worker_remembers_nothing(home: Runner) -> None:
    worker = (
        "from sandboxrun import worker\nseen = []\n@worker.handler\ndef handle(request):\n"
        "    seen.append(1)\n    return {'n': len(seen)}\nworker.run()\n"
    )
    folder(
        home,
        {"reply": {"n": 1}, "fresh": True},
        {"reply": {"n": 2}},
        {"reply": {"n": 1}, "fresh": True},
        worker=worker,
    )
    assert home("test", "t").code == 0


def test_the_worker_is_held_to_the_grants_of_its_spec(home: Runner) -> None:
    folder(
        home,
        {"request": redis(["SET", "b", "1"]), "reply": {"code": 500}},
        {"request": redis(["SET", "a", "1"]), "after": {"a": 1}},
    )
    assert home("test", "t").code == 0


def test_folders_do_not_see_each_other_and_nothing_is_left(home: Runner) -> None:
    names = "uvwx"
    for name in names:
        folder(home, *[{"request": redis(["INCR", "a"]), "after": {"a": 1}} for _ in range(20)], name=name)
    done = home("test", *names, "--jobs", "4")
    assert (done.code, done.out.splitlines()[-1][:10]) == (0, "80 passed "), done
    assert sorted(name for name in os.listdir(home.home) if not name.startswith(".")) == sorted(names)
    left = subprocess.run(["pgrep", "-f", f"HOME={home.home}|{home.home}"], capture_output=True, check=False)
    assert left.stdout == b""


def test_services_are_answered_by_the_tests_of_their_specs(home: Runner) -> None:
    caller = (
        "from sandboxrun import client, worker\n@worker.handler\ndef handle(request):\n"
        "    return {'cents': client.call('price', request.data, timeout=5)['cents']}\nworker.run()\n"
    )
    prices = {"tests": [{"name": "tea", "request": {"item": "tea"}, "reply": {"cents": 350}}]}
    folder(home, name="price", **prices)
    folder(
        home,
        {"request": {"item": "tea"}, "reply": {"cents": 350}},
        {"request": {"item": "car"}, "reply": {"code": 500}},
        worker=caller,
        grants={"allowCall": "price"},
    )
    done = home("test", "t")
    assert done.code == 1
    assert lines(done)[0] == 'price was called with {"item": "car"}: no test of price has this request'
    assert done.out.count("FAIL") == 1


def test_a_worker_that_ends_over_an_unknown_answer_fails_a_generated_test(home: Runner) -> None:
    caller = (
        "import os\nfrom sandboxrun import client, worker\n@worker.handler\ndef handle(request):\n    try:\n"
        "        return {'cents': client.call('price', request.data, timeout=5)['cents']}\n"
        "    except client.CallError:\n        os._exit(9)\nworker.run()\n"
    )
    request = {"type": "object", "properties": {"item": {"type": "string"}}, "required": ["item"]}
    folder(home, name="price", tests=[{"name": "tea", "request": {"item": "tea"}, "reply": {"cents": 350}}])
    folder(home, {"request": {"item": "tea"}}, worker=caller, request=request, grants={"allowCall": "price"})
    assert home("test", "t").code == 0
    done = home("test", "t", "--generate")
    assert (done.code, "the worker ended with exit code 9" in done.out) == (1, True), done.out


def test_the_schema_of_replies_holds_for_a_worker_that_does_not_check_itself(home: Runner) -> None:
    path = home.home / "by-hand"
    shutil.copytree(ROOT / "examples/by-hand", path)
    spec = json.loads((path / "spec.json").read_text())
    spec["reply"] = {"type": "object", "properties": {"text": {"maxLength": 2}}}
    spec["tests"] = [{"name": "short", "request": {"text": "a"}}, {"name": "long", "request": {"text": "abc"}}]
    (path / "spec.json").write_text(json.dumps(spec))
    done = home("test", "by-hand")
    assert (done.code, lines(done)) == (
        1,
        ['reply.text: "ABC" is longer than 2 characters (by the schema of replies)'],
    )


def test_what_is_emitted_is_in_the_stream(home: Runner) -> None:
    emitting = (
        "from sandboxrun import worker\n@worker.handler\ndef handle(request):\n"
        "    request.emit('mail', {'to': 'ann'})\nworker.run()\n"
    )
    folder(
        home,
        {"after": {"mail:req:x": [{"data": {"$json": {"to": "ann"}}}]}},
        {},
        worker=emitting,
        grants={"allowCall": "mail"},
    )
    done = home("test", "t")
    assert (done.code, lines(done)) == (
        1,
        ['mail:req:x: was made by the request, and is not in after: [{"data": {"$json": {"to": "ann"}}}]'],
    )


def test_http_is_answered_once_each_and_all_of_it_is_expected(home: Runner) -> None:
    fetching = (
        "import httpx\nfrom sandboxrun import worker\n@worker.handler\ndef handle(request):\n"
        "    return {'got': [httpx.get(url).text for url in request.data['urls']]}\nworker.run()\n"
    )
    page = {"request": {"path": "/a"}, "reply": {"body": "A"}}
    folder(
        home,
        {"request": {"urls": ["{http}/a"]}, "http": [page], "reply": {"got": ["A"]}},
        {"request": {"urls": ["{http}/a", "{http}/a"]}, "http": [page], "reply": {"got": ["A", "$any"]}},
        {"request": {"urls": []}, "http": [page]},
        worker=fetching,
        grants={},
    )
    done = home("test", "t")
    assert (done.code, lines(done)) == (
        1,
        ['GET "/a" was requested, and is not in http', "http[0]: GET /a was not requested"],
    ), done


def test_update_writes_what_the_worker_does_and_keeps_what_fits(home: Runner) -> None:
    path = folder(
        home,
        {
            "request": {"reply": {"n": 1, "at": "now"}, **redis(["SET", "a", "2"], ["SET", "ab", "1", "EX", "60"])},
            "reply": {"n": 2, "at": "$any"},
            "after": {"a": {"$between": [1, 3]}, "ac": 1},
        },
        {"request": {"bad": "no"}},
    )
    done = home("test", "t", "--update")
    assert (done.code, done.out.splitlines()[-1][:21]) == (0, "0 passed, 2 updated i")
    first, second = json.loads((path / "spec.json").read_text())["tests"]
    assert first["reply"] == {"n": 1, "at": "$any"}
    assert first["after"] == {"a": {"$between": [1, 3]}, "ab": {"$value": 1, "$ttl": 60}}
    assert second["reply"] == {"code": 400, "err": {"message": "no"}}
    assert home("test", "t").code == 0


def test_update_keeps_a_symlink_and_the_mode_of_its_file(home: Runner) -> None:
    path = folder(home, {"reply": {"n": 1}, "request": {"reply": {"n": 2}}})
    real = path / "real.json"
    (path / "spec.json").rename(real)
    real.chmod(0o640)
    (path / "spec.json").symlink_to(real)
    home("test", "t", "--update")
    assert (path / "spec.json").is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert json.loads(real.read_text())["tests"][0]["reply"] == {"n": 2}


def test_update_does_not_undo_what_was_saved_meanwhile(home: Runner) -> None:
    """The worker's own folder may not be written, so a test saves the file here while the worker sleeps."""
    path = folder(home, {"reply": {"n": 1}, "request": {"reply": {"n": 2}, "sleep": 1}})
    with home.start("test", "t", "--update") as process:
        wait_for(lambda: list(home.home.glob(".local/state/sandboxrun/runs/t:test.json")), 20, "the run")
        saved = (path / "spec.json").read_text().replace("test 0", "another name")
        (path / "spec.json").write_text(saved)
        _, err = process.communicate(timeout=30)
    assert b"spec.json was changed while its tests ran: nothing was updated" in err
    assert (path / "spec.json").read_text() == saved


def test_update_does_not_make_a_failure_what_is_expected(home: Runner) -> None:
    path = folder(home, {"request": redis(["SET", "b", "1"]), "reply": {"n": 1}})
    before = (path / "spec.json").read_text()
    done = home("test", "t", "--update")
    assert (done.code, "not updated, because the reply has code 500" in done.out) == (1, True)
    assert (path / "spec.json").read_text() == before


def test_an_infinite_score_is_recorded_and_passes(home: Runner) -> None:
    path = folder(home, {"request": redis(["ZADD", "a:z", "inf", "b", "-inf", "c"])})
    assert home("test", "t", "--update").code == 0
    assert json.loads((path / "spec.json").read_text())["tests"][0]["after"] == {"a:z": {"b": "inf", "c": "-inf"}}
    assert home("test", "t").code == 0


WRONG_GRANTS = [
    ({"allowRedis": "t:*"}, "grants.allowRedis has t:*, which covers t:test:h: the worker could change what it is granted"),
    ({"allowRed": "a:*"}, "grants.allowRed is not a permission of sandboxrun: expected one of "),
    ({"allowNet": "%%%"}, "grants.allowNet has '%%%': not a valid host name"),
]  # fmt: skip


@pytest.mark.parametrize(("grants", "message"), WRONG_GRANTS)
def test_grants_that_no_hash_may_have_are_told_by_their_place(
    home: Runner, grants: dict[str, str], message: str
) -> None:
    path = folder(home, {}, grants=grants)
    done = home("test", "t")
    assert (done.code, f"{path}/spec.json: {message}" in done.out) == (65, True), done.out


def test_a_worker_that_the_policy_refuses_is_told_in_json_too(home: Runner) -> None:
    home.set_policy(None)
    folder(home, {}, grants={"allowRead": "/etc"})
    done = home("test", "t", "--json")
    assert done.code == 77
    assert "which the default policy does not allow" in json.loads(done.out)[0]["error"]


def test_a_long_traceback_is_shown_with_the_lines_of_the_worker(home: Runner) -> None:
    worker = (
        "import json\nfrom sandboxrun import worker\ndef deep(n):\n    return json.loads('[', object_hook=deep) if not n else"
        " eval('f(n)', {'f': deep, 'n': n - 1})\n@worker.handler\ndef handle(request):\n    return deep(20)\nworker.run()\n"
    )
    folder(home, {}, worker=worker)
    shown = [line for line in lines(home("test", "t")) if line.startswith("| ")]
    assert len(shown) <= 12
    assert any("t/worker.py" in line for line in shown)
    assert shown[-1].startswith("| json.decoder.JSONDecodeError")


def test_a_test_that_fails_is_not_run_again(home: Runner) -> None:
    folder(home, {"reply": {"n": 1}}, {})
    done = home("test", "t", "--generate", "-v")
    assert [line.split("  ")[2] for line in done.out.splitlines() if "again: " in line] != []
    assert "again: test 1" in done.out and "again: test 0" not in done.out


def test_keys_of_the_protocol_and_what_redis_refuses_are_told(home: Runner) -> None:
    folder(
        home,
        {"before": {"t:test:h": {"url": "/etc"}}},
        {"after": {"t:req:x": []}},
        {"before": {"a:x": [{"$id": "2-1", "b": 1}, {"$id": "1-1", "b": 1}]}},
        {},
    )
    done = home("test", "t")
    assert (done.code, done.out.splitlines()[-1][:18]) == (1, "1 passed, 3 failed")
    assert lines(done)[:2] == [
        "before.t:test:h is a key of the protocol itself, which a test cannot have",
        "after.t:req:x is a key of the protocol itself, which a test cannot have",
    ]
    assert lines(done)[2].startswith("before.a:x is refused by Redis: ERR The ID specified in XADD")


def test_junit(home: Runner) -> None:
    folder(home, {}, {"reply": {"a": "\x01"}})
    done = home("test", "t", "--junit", "out.xml")
    assert done.code == 1
    suite = ElementTree.parse(home.home / "out.xml").getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("t", "2", "1", "0")
    assert [len(case) for case in suite] == [0, 1]


def test_eight_mebibytes_of_state(home: Runner) -> None:
    folder(home, {"before": {"a": "x" * (7 << 20)}, "request": redis(["APPEND", "a", "y"]), "after": {"a": "$any"}})
    done = home("test", "t")
    assert done.code == 0, done


def test_what_a_command_line_is_told(home: Runner) -> None:
    path = folder(home, {})
    assert home("test", "none").err.startswith("error: none is not a folder")
    (home.home / "empty").mkdir()
    assert home("test", "empty").err == "error: empty has no worker.py\n"
    assert "no test has a name with 'zzz'" in home("test", "t", "-k", "zzz").err
    (path / "spec.json").write_text('{"type": "u", "tests": [{"name": "a"}]}')
    assert "is of the type u: expected t, as its folder is called" in home("test", "t").err
    (path / "spec.json").write_text('{"type": "t"}')
    done = home("test", "t")
    assert (done.code, "spec.json has no tests" in done.err) == (65, True)


def test_the_page_about_tests(home: Runner) -> None:
    """Its files are written, its commands run, and what it shows is what they print, but for times."""
    page = (ROOT / "docs/testing.md").read_text()
    path = home.home / "counter"
    path.mkdir()
    blocks = re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL)
    for kind, name in (("python", "worker.py"), ("json", "spec.json")):
        (path / name).write_text(next(text for found, text in blocks if found == kind))
    shown = [text for kind, text in blocks if kind == "console"]
    commands = [part for text in shown for part in text.split("$ ")[1:] if part.startswith("sandboxrun test")]
    assert len(commands) == 3
    for command, _, output in (part.partition("\n") for part in commands):
        done = home(*command.split()[1:])
        assert re.sub(r"[0-9.]+ m?s\n", "TIME", done.out) == re.sub(r"[0-9.]+ m?s\n", "TIME", output)


def test_every_example_plugin_and_the_demo_pass(home: Runner) -> None:
    # `test` starts no PostgreSQL: tests/redis/test_postgres_sync.py and test_postgres_query.py do.
    plugins = [path for path in (ROOT / "plugins").iterdir() if not path.name.startswith("postgres-")]
    folders = [*(ROOT / "examples").iterdir(), *plugins, ROOT / "demo"]
    done = home("test", *map(str, sorted(path for path in folders if path.is_dir() and path.name != "__pycache__")))
    assert done.code == 0, done.out
