"""`sandboxrun spec` with folders, files, and types that Redis knows."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from raw_host import RawHost
from runner import Done, Runner
from spec_files import PRICE

TEXT = json.dumps(PRICE, indent=2)
CODE = "print('ran')\n"
Local = Callable[..., Path]


@pytest.fixture
def folder(run: Runner) -> Path:
    made = run.home / "price"
    made.mkdir()
    (made / "spec.json").write_text(TEXT)
    return made


def shown(run: Runner, *args: str) -> str:
    done = run("spec", *args)
    assert (done.code, done.err) == (0, ""), done
    return done.out


def test_each_form_of_a_folder_is_printed(run: Runner, folder: Path) -> None:
    assert shown(run, "show", "price").startswith("price: Prices\n  What things cost.\n")
    assert shown(run, "show", "price/spec.json", "--markdown").startswith("# Prices\n")
    interface = json.loads(shown(run, "show", "price", "--json"))
    assert interface == {name: value for name, value in PRICE.items() if name not in ("tests", "secrets")}
    (run.home / "price_types.py").write_text(shown(run, "types", "price"))
    used = "import price_types; print(price_types.Price.of.__kwdefaults__['count'])"
    assert subprocess.check_output([sys.executable, "-c", used], cwd=run.home, text=True) == "Ellipsis\n"


def test_a_document_is_imported_as_the_spec_that_it_was_made_of(run: Runner, folder: Path) -> None:
    (run.home / "document.json").write_text(shown(run, "asyncapi", "price"))
    assert json.loads(shown(run, "import", "document.json")) == PRICE


def test_json_keeps_its_letters_and_escapes_what_could_drive_a_terminal(run: Runner) -> None:
    text = "Grüße\x1b[2J\x7f\u202e\U000e0001 \U0001f600"
    (run.home / "spec.json").write_text(json.dumps({"type": "t", "title": text}))
    out = shown(run, "show", "spec.json", "--json")
    assert "Grüße\\u001b[2J\\u007f\\u202e\\udb40\\udc01 \U0001f600" in out
    assert json.loads(out)["title"] == text


def test_a_schema_that_is_nested_too_deep_is_an_error(run: Runner) -> None:
    schema: dict[str, object] = {}
    for _ in range(400):
        schema = {"items": schema}
    operation = {"action": "receive", "messages": [{"payload": schema}], "reply": {}}
    document = {"asyncapi": "3.0.0", "info": {"title": "t"}, "operations": {"deep": operation}}
    (run.home / "deep.json").write_text(json.dumps(document))
    assert run("spec", "import", "deep.json") == Done(65, "", "error: deep.json is nested too deep\n")


def test_a_file_that_is_wrong_is_an_error(run: Runner, folder: Path) -> None:
    (folder / "spec.json").write_text('{"type": "price", "requst": {}}')
    done = run("spec", "show", "price")
    message = "price/spec.json has 'requst', which is no part of it, did you mean request?"
    assert done == Done(65, "", f"error: {message}\n")
    (folder / "deep.json").write_text('{"asyncapi": "3.0.0", "info": ' + '{"a": ' * 50_000 + "1" + "}" * 50_001)
    done = run("spec", "import", "price/deep.json")
    assert (done.code, done.out) == (65, "")
    assert done.err.startswith("error: price/deep.json is not JSON as expected: ")


def test_a_type_is_the_spec_beside_its_local_script(run: Runner, r: redis.Redis, local: Local) -> None:
    folder = local(CODE, "price:h")
    done = run("spec", "show", "price")
    assert done == Done(65, "", f"error: there is no spec.json beside {folder}/worker.py, which price:h names\n")
    (folder / "spec.json").write_text(TEXT)
    assert shown(run, "show", "price").startswith("price: Prices\n")
    r.delete("price:h")
    r.hset("price:2:h", mapping={"workerUrl": f"{folder}/worker.py", "workerVersion": "local"})
    assert shown(run, "show", "price").startswith("price: Prices\n")


def test_a_folder_comes_before_a_type_of_its_name(run: Runner, folder: Path, local: Local) -> None:
    (local(CODE, "price:h") / "spec.json").write_text('{"type": "price", "title": "Of Redis"}')
    assert shown(run, "show", "price").startswith("price: Prices\n")


def test_a_type_by_url_is_the_spec_that_was_fetched_with_its_script(run: Runner, r: redis.Redis, host: RawHost) -> None:
    listed = f'"spec.json" = "sha256:{hashlib.sha256(TEXT.encode()).hexdigest()}"'
    block = f"# /// script\n# [tool.sandboxrun]\n# files = {{ {listed} }}\n# ///\n"
    host.files["/v1/worker.py"] = block + CODE
    host.files["/v1/spec.json"] = TEXT
    r.hset("price:1:h", mapping={"url": host.url + "/{version}/worker.py", "version": "v1"})
    done = run("spec", "show", "price")
    url = f"{host.url}/v1/worker.py"
    assert done == Done(65, "", f"error: the cache has no spec.json of {url}, which price:1:h names\n")
    assert host.requests == []
    fetched = run("price", "1")
    assert (fetched.code, fetched.out) == (0, "ran\n"), fetched
    host.close()
    assert shown(run, "show", "price").startswith("price: Prices\n")


def test_a_long_line_of_a_failing_worker_is_cut(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "worker.py").write_text(
        'from sandboxrun import worker\n@worker.handler\ndef handle(request):\n    print("x" * 3000)\nworker.run()\n'
    )
    (folder / "spec.json").write_text('{"type": "t", "tests": [{"name": "n", "reply": {"a": 1}}]}')
    done = Runner("", tmp_path)("test", "t")
    assert done.code == 1
    assert f"        | {'x' * 1000}… (2000 more characters)" in done.out.splitlines()
