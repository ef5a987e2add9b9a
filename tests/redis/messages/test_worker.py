"""The hints of the SDK: each one's mistake is made, and the hint is followed as it stands."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from arena import wait_for
from hints import hint_of, is_of, paste, templates
from runner import Runner

from sandboxrun import client

Fix = Callable[[str, str], str]  # the script, the hint's lines
SECONDS = 60
IMPORT = "from sandboxrun import worker\n"
HANDLER = '@worker.handler\ndef handle(request):\n    return {"a": 1}\n'
RUN = "worker.run()\n"


def in_place_of(wrong: str) -> Fix:
    def fix(script: str, hint: str) -> str:
        assert script.count(wrong) == 1
        return script.replace(wrong, hint)

    return fix


def without_two_encoders(script: str, hint: str) -> str:
    return script.replace("@worker.encoder\n", "").replace("# HERE", hint)


def at_the_end(script: str, hint: str) -> str:
    return f"{script}\n{hint}\n"


def handler(first_line: str) -> str:
    return f'{IMPORT}@worker.handler\n{first_line}\n    return {{"a": 1}}\n{RUN}'


def typed(imported: str, note: str) -> str:
    return (
        f"from __future__ import annotations\nfrom typing import TYPE_CHECKING\n{IMPORT}# HERE\n"
        f"if TYPE_CHECKING:\n    {imported}\n"
        f"@worker.handler\ndef handle(request, day: dict[str, {note} | int | None]):\n    return {{}}\n{RUN}"
    )


EXAMPLE = '@worker.handler\ndef handle(request):\n    return {"data": request.data}'
ENCODER = "@worker.encoder\ndef encode(value):\n    return str(value)"
TWO = (
    "@worker.encoder\ndef encode(value):\n    try:\n        return {}(value)\n"
    "    except TypeError:\n        return {}(value)"
)
DEF, DATACLASS = "{}def {}({}):", "from dataclasses import dataclass\n@dataclass\nclass {}{}:"
DATA = {"day": None, "n": 1}  # what the handlers below can take

# The hint's template, the script with the mistake, and where the hint's lines go.
BATCH = "@worker.batch(size=1000)\ndef handle(requests):\n    return [{} for request in requests]"
BATCHED = "def handle(requests):\n    pass\n"
SITUATIONS: dict[str, tuple[str, str, Fix]] = {
    "no handler": (EXAMPLE, IMPORT + "# HERE\n" + RUN, in_place_of("# HERE")),
    "the handler is a number": (EXAMPLE, IMPORT + "worker.handler(5)\n" + RUN, in_place_of("worker.handler(5)")),
    "the handler cannot be called": (
        EXAMPLE, IMPORT + "worker.handler('u')(classmethod(print))\n" + RUN,
        in_place_of("worker.handler('u')(classmethod(print))"),
    ),
    "a batch handler that is none": (BATCH, IMPORT + "worker.batch()(5)\n" + RUN, in_place_of("worker.batch()(5)")),
    "a batch of no requests": (
        "@worker.batch(size=1000)", IMPORT + "@worker.batch(size=0)\n" + BATCHED + RUN,
        in_place_of("@worker.batch(size=0)"),
    ),
    "a batch of no time": (
        "@worker.batch(seconds=0.05)", IMPORT + "@worker.batch(seconds=-1)\n" + BATCHED + RUN,
        in_place_of("@worker.batch(seconds=-1)"),
    ),
    "a batch handler with concurrency": (
        "worker.run()", IMPORT + "@worker.batch()\n" + BATCHED + "worker.run(concurrency=4)\n",
        in_place_of("worker.run(concurrency=4)"),
    ),
    "a timeout of 0": (
        "@worker.handler({}timeout=5)", (IMPORT + HANDLER + RUN).replace("handler\n", "handler(timeout=0)\n"),
        in_place_of("@worker.handler(timeout=0)"),
    ),
    "a timeout of 0 and a type": (
        "@worker.handler({}timeout=5)", (IMPORT + HANDLER + RUN).replace("handler\n", 'handler("t", timeout=0)\n'),
        in_place_of('@worker.handler("t", timeout=0)'),
    ),
    "an encoder that is async": (
        ENCODER, IMPORT + HANDLER + "@worker.encoder\nasync def encode(value): ...\n" + RUN,
        in_place_of("@worker.encoder\nasync def encode(value): ..."),
    ),
    "two encoders": (
        TWO,
        IMPORT + HANDLER + "@worker.encoder\ndef money(value): ...\n@worker.encoder\ndef color(value): ...\n# HERE\n" + RUN,
        without_two_encoders,
    ),
    "concurrency of 0": (
        "worker.run(concurrency=100)", IMPORT + HANDLER + "worker.run(concurrency=0)\n",
        in_place_of("worker.run(concurrency=0)"),
    ),
    "run in a thread": (
        "worker.run()", IMPORT + "import threading\n" + HANDLER + "threading.Thread(target=worker.run).start()\n",
        in_place_of("threading.Thread(target=worker.run).start()"),
    ),
    "run in an event loop": (
        "worker.run()",
        IMPORT + "import asyncio\n" + HANDLER + "async def main(): worker.run()\nasyncio.run(main())\n",
        in_place_of("asyncio.run(main())"),
    ),
    "a timeout in threads": (
        "worker.run()",
        (IMPORT + HANDLER + "worker.run(concurrency=4)\n").replace("handler\n", "handler(timeout=5)\n"),
        in_place_of("worker.run(concurrency=4)"),
    ),
    "run was forgotten": ("worker.run()", IMPORT + HANDLER, at_the_end),
    "no parameter": (DEF, handler("def handle():"), in_place_of("def handle():")),
    "no parameter, async": (DEF, handler("async def handle():"), in_place_of("async def handle():")),
    "a second parameter without a type": (
        DEF, handler("def handle(request: worker.Request, data):"), in_place_of("def handle(request: worker.Request, data):"),
    ),
    "the payload first": (
        DEF, handler("def handle(data: dict[str, object], request: worker.Request):"),
        in_place_of("def handle(data: dict[str, object], request: worker.Request):"),
    ),
    "a needed keyword": (
        DEF, handler("def handle(request: worker.Request, *, data: dict, db):"),
        in_place_of("def handle(request: worker.Request, *, data: dict, db):"),
    ),
    "a type under TYPE_CHECKING": (
        "from {} import {}", typed("from datetime import datetime, date as Day", "Day"), in_place_of("# HERE"),
    ),
    "a module under TYPE_CHECKING": ("import {}", typed("import uuid, datetime", "datetime.date"), in_place_of("# HERE")),
    "a class that is no dataclass": (
        DATACLASS,
        IMPORT + "class Base: ...\nclass Order(Base):\n    n: int\n    day: None\n\n"
        "@worker.handler\ndef handle(request: worker.Request[Order]):\n    return {'n': request.data.n}\n" + RUN,
        in_place_of("class Order(Base):"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", SITUATIONS)
def test_a_script_that_takes_the_hint_answers(
    r: redis.Redis, run: Runner, local: Callable[..., Path], mistake: str
) -> None:
    template, script, fix = SITUATIONS[mistake]
    local(script)
    done = run("t", "1")
    hint = hint_of(done.err)
    assert is_of(template, hint), done.err
    assert done.code != 0 or mistake == "run was forgotten"
    local(fix(script, hint), requestLimit="1")
    r.xadd("t:req:x", {"ref": "r1", "type": "t", "data": json.dumps(DATA)})
    done = run("t", "1")
    assert (done.code, re.findall("hint: ", done.err)) == (0, []), done.err
    assert json.loads(r.lpop("res:r1"))["code"] == 200  # type: ignore[arg-type]


def test_a_script_that_is_started_by_python_is_served_by_dev(
    r: redis.Redis, run: Runner, tmp_path: Path, redis_url: str
) -> None:
    folder = tmp_path / "it's-here"
    folder.mkdir()
    script = folder / "worker.py"
    script.write_text(IMPORT + HANDLER + RUN)
    done = subprocess.run([sys.executable, str(script)], cwd=run.home, capture_output=True, text=True, timeout=SECONDS)
    hint = hint_of(done.stderr)
    assert done.returncode == 78 and is_of("sandboxrun dev {}", hint)
    with pasted(run, hint):
        wait_for(lambda: list(r.scan_iter("*:dev:h")), SECONDS, "the hash of dev")
        (key,) = r.scan_iter("*:dev:h")
        assert client.call(key.partition(":")[0], {}, timeout=SECONDS, url=redis_url)["a"] == 1


@contextlib.contextmanager
def pasted(run: Runner, hint: str) -> Iterator[None]:
    """The hint in a shell, until it is interrupted."""
    env = {**run.env, "PATH": f"{Path(sys.executable).parent}:{run.env['PATH']}"}
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", f"exec {hint}"], env=env, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=SECONDS)


def test_a_call_without_a_worker_says_where_to_look(r: redis.Redis, run: Runner, redis_url: str) -> None:
    with pytest.raises(client.CallTimeout) as error:
        client.call("t", {}, timeout=0.1, url=redis_url)
    (hint,) = error.value.hint
    assert is_of("sandboxrun info {}", hint)
    done = paste(hint, run.env, run.home)
    assert done.returncode == 0 and "1 requests in the stream" in done.stdout, done


def test_dead_letters_are_shown_and_sent_again(r: redis.Redis, run: Runner, local: Callable[..., Path]) -> None:
    local(IMPORT + HANDLER + RUN, requestLimit="1")
    r.xgroup_create("t:req:x", "worker", 0, mkstream=True)
    r.xadd("t:req:x", {"ref": "r1", "type": "t", "data": "{}"})
    ((_, ((xid, _),)),) = r.xreadgroup("worker", "gone", {"t:req:x": ">"})
    r.xclaim("t:req:x", "worker", "gone", 0, [xid], idle=100_000, retrycount=5, justid=True)
    done = run("t", "1")
    hint = hint_of(done.err)
    assert is_of("sandboxrun dead {}", hint), done.err
    pasted = paste(hint, run.env, run.home)
    assert pasted.returncode == 0 and "5×  r1  {}" in pasted.stdout


@pytest.mark.parametrize("stored", [{}, {"user": "it's me"}])
def test_a_missing_secret_is_stored_with_the_others(
    r: redis.Redis, run: Runner, local: Callable[..., Path], stored: dict[str, str]
) -> None:
    local(IMPORT + "print(worker.secrets()['token'], [*worker.secrets()])\n")
    key = run.home / "demo.key"
    if stored:
        command = "encrypt", "t", "1", "--key-file", str(key), "--write"
        assert run(*command, stdin=json.dumps(stored)).code == 0
    done = run("t", "1", stdin=key.read_bytes() if stored else b"")
    hint = hint_of(done.err)
    assert is_of(SECRET, hint), done.err
    pasted = paste(hint, run.env, run.home, FILE=str(key), VALUE="t0ken")
    assert pasted.returncode == 0, pasted
    done = run("t", "1", stdin=key.read_bytes())
    assert (done.code, done.out.split()[0]) == (0, "t0ken"), done.err
    assert all(repr(name) in done.out for name in (*stored, "token"))


@pytest.mark.parametrize("granted", ["", "/var/tmp"])
def test_the_data_folder_is_granted_beside_what_is_granted_already(
    r: redis.Redis, run: Runner, local: Callable[..., Path], granted: str
) -> None:
    local(IMPORT + "print(worker.data().is_dir())\n", **({"allowWrite": granted} if granted else {}))
    done = run("t", "1", "--yes")
    hint = hint_of(done.err)
    assert is_of(DATA_FOLDER, hint), done.err
    pasted = paste(hint, run.env, run.home)
    assert pasted.returncode == 0, pasted
    done = run("t", "1")
    assert (done.code, done.out) == (0, "True\n"), done.err
    assert r.hget("t:1:h", "allowWrite") == ",".join(filter(None, (granted, "~data")))


@pytest.mark.parametrize(("named", "right"), [("price,stok", "price,stock"), ("bank", "price,stock")])
def test_a_field_gets_the_services_that_the_script_has(
    r: redis.Redis, run: Runner, local: Callable[..., Path], named: str, right: str
) -> None:
    service = "@worker.service({!r})\nclass {}:\n    def of(self): ...\n"
    local(IMPORT + service.format("price", "Price") + service.format("stock", "Stock") + RUN, services=named)
    done = run("t", "1")
    assert done.code == 78 and "error: field services of t:1:h has " in done.err
    hint = hint_of(done.err)
    assert is_of("sandboxrun set {} {}", hint), done.err
    pasted = paste(hint, run.env, run.home)
    assert pasted.returncode == 0, pasted
    assert r.hget("t:1:h", "services") == right
    with run.start("t", "1"), client.Client(run.env["REDIS_URL"]) as c:
        assert c.call("t", {}, method="stock.of", timeout=SECONDS)["result"] is None


DATA_FOLDER = "sandboxrun set {} {} && sandboxrun approve {}"
SECRET = "echo {} | sandboxrun encrypt {} {} --key-file FILE --write"


def test_every_hint_has_its_situation() -> None:
    own = {SECRET, DATA_FOLDER, "sandboxrun dev {}", "sandboxrun info {}", "sandboxrun dead {}"}
    found = {**templates("worker"), **templates("client"), **templates("protocol")}
    assert set(found) == {template for template, _, _ in SITUATIONS.values()} | own
