"""The files of a new worker: small, and each of them works as it is."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from sandboxrun.dev.target import check_text, type_from
from sandboxrun.errors import SandboxrunError, UsageError

_WORKER = '''\
"""Greets whoever asks."""

from sandboxrun import worker


@worker.handler
def handle(request):
    data = request.data
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise worker.BadRequest("expected a name, as in name=world")
    return {"text": f"Hello, {data['name']}!"}


worker.run()
'''
_TEST = '''\
"""The worker as it will run: started by the command, in the sandbox, with a Redis of its own. Run: pytest"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from sandboxrun import client
from sandboxrun.redis import embedded

FOLDER = Path(__file__).parent
TYPE = "@TYPE@"


@pytest.fixture(scope="module")
def call():
    command = [Path(sys.executable).with_name("sandboxrun"), TYPE, "test"]
    with embedded.server() as url:
        with redis.Redis.from_url(url) as r:
            r.hset(f"{TYPE}:test:h", mapping={"url": str(FOLDER), "version": "local"})
        process = subprocess.Popen(command, env={**os.environ, "REDIS_URL": url}, stdin=subprocess.DEVNULL)
        try:
            with client.Client(url) as c:
                yield lambda data: c.call(TYPE, data, timeout=20)
        finally:
            process.terminate()
            process.wait()


def test_it_greets(call):
    assert call({"name": "world"})["text"] == "Hello, world!"


def test_it_says_what_is_wrong_with_a_request(call):
    with pytest.raises(client.BadRequest, match="name"):
        call({})
'''
_SPEC = """\
{
  "type": "@TYPE@",
  "description": "Greets whoever asks.",
  "request": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
  "reply": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
  "tests": [
    {"name": "greets", "request": {"name": "world"}, "reply": {"text": "Hello, world!"}},
    {"name": "greets in any alphabet", "request": {"name": "Ольга"}, "reply": {"text": "Hello, Ольга!"}},
    {"name": "refuses a request without a name", "request": {}, "reply": {"code": 400}}
  ]
}
"""
_README = """\
# @NAME@

A worker for sandboxrun. `worker.py` is all of it.
`spec.json` says what a request and a reply are, and has tests, which need no code.
`test_worker.py` is a test in Python.

```console
$ pip install 'sandboxrun[dev,debug]' pytest
$ sandboxrun test .              # the tests of spec.json
$ sandboxrun dev .               # type name=world; edit worker.py, save, ask again; exit ends
$ sandboxrun dev . --record      # each request that you type becomes a test in spec.json
$ sandboxrun dev . --inspect     # attach VS Code: Run and Debug, "Attach to the worker"
$ sandboxrun dev . --learn       # ends with the permissions that it tried to use and did not have
$ pytest
```

To run it with a Redis that is there:

```console
$ sandboxrun set @TYPE@ 1 url="$PWD" version=local
$ sandboxrun @TYPE@ 1
$ sandboxrun call @TYPE@ name=world
```
"""
_LAUNCH = """\
{
  "version": "0.2.0",
  "configurations": [
    {
      "name": "Attach to the worker",
      "type": "debugpy",
      "request": "attach",
      "connect": { "host": "127.0.0.1", "port": 9229 },
      "justMyCode": true
    }
  ]
}
"""
_PACKAGE_WORKER = '''\
# /// script
# requires-python = ">=3.11"
# dependencies = ["humanize>=4"]
# ///
"""Says a number of bytes as people do."""

from words import size

from sandboxrun import worker


@worker.handler
def handle(request):
    data = request.data
    if not isinstance(data, dict) or type(data.get("bytes")) is not int:
        raise worker.BadRequest("expected a number, as in bytes=1048576")
    return {"text": size(data["bytes"])}


worker.run()
'''
_PACKAGE_WORDS = """\
import humanize


def size(number):
    return humanize.naturalsize(number, binary=True)
"""
_PACKAGE_SPEC = """\
{
  "type": "@TYPE@",
  "description": "Says a number of bytes as people do.",
  "request": {"type": "object", "properties": {"bytes": {"type": "integer"}}, "required": ["bytes"]},
  "reply": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
  "tests": [
    {"name": "says a size", "request": {"bytes": 1048576}, "reply": {"text": "1.0 MiB"}},
    {"name": "says a few bytes", "request": {"bytes": 7}, "reply": {"text": "7 Bytes"}},
    {"name": "refuses what is no whole number", "request": {"bytes": "many"}, "reply": {"code": 400}}
  ]
}
"""
_PACKAGE_README = """\
# @NAME@

A worker for sandboxrun, of two files and a package: `worker.py`, `words.py` and humanize.

The comment `# /// script` at the top of `worker.py` lists all that runs, by digests: `files` are the other files, and `lock` is
`requirements.lock`, which has the digests of the packages.
So the digest of `worker.py` covers everything, wherever it is fetched from.
`spec.json` says what a request and a reply are, and has tests, which need no code.

```console
$ pip install 'sandboxrun[dev,lock]' pytest
$ sandboxrun test .              # the tests of spec.json
$ sandboxrun dev .               # type bytes=1048576; edit a file, save, ask again; exit ends
$ sandboxrun lock .              # after an edit, before you publish: writes the digests
$ sandboxrun lock . --check      # in CI
$ pytest
```

To add a package, write its name into `dependencies`: `dev` installs it when you save, and `lock` pins it.

To run the worker with a Redis that is there:

```console
$ sandboxrun set @TYPE@ 1 url="$PWD" version=local
$ sandboxrun @TYPE@ 1
$ sandboxrun call @TYPE@ bytes=1048576
```
"""
FILES = {
    "worker.py": _WORKER,
    "spec.json": _SPEC,
    "test_worker.py": _TEST,
    "README.md": _README,
    ".vscode/launch.json": _LAUNCH,
}
PACKAGE_FILES = {
    **FILES,
    "worker.py": _PACKAGE_WORKER,
    "spec.json": _PACKAGE_SPEC,
    "words.py": _PACKAGE_WORDS,
    "README.md": _PACKAGE_README,
    "test_worker.py": _TEST.replace(
        '''def test_it_greets(call):
    assert call({"name": "world"})["text"] == "Hello, world!"''',
        '''def test_it_says_a_size(call):
    assert call({"bytes": 1048576})["text"] == "1.0 MiB"''',
    ).replace('match="name"', 'match="bytes"'),
}


def make(name: str, files: Mapping[str, str] = FILES) -> list[str]:
    """Make the folder and its files; their paths. Raises UsageError if it is there and not empty."""
    folder = os.path.abspath(name)
    check_text(folder)
    type_ = type_from(os.path.basename(folder))
    made = []
    try:
        with contextlib.suppress(FileNotFoundError):
            if os.listdir(folder):
                raise UsageError(
                    f"{name[:200]} is there and not empty, so nothing is written", hint=_other_name_hint(name)
                )
        for path, text in files.items():
            whole = os.path.join(folder, path)
            os.makedirs(os.path.dirname(whole), exist_ok=True)
            with open(whole, "x", encoding="utf-8") as file:  # never over a file that came meanwhile
                file.write(text.replace("@TYPE@", type_).replace("@NAME@", os.path.basename(folder)))
            made.append(os.path.join(name, path))
    except OSError as error:
        raise UsageError(f"{name[:200]} cannot be made: {error.strerror}") from error
    return made


def lock(name: str, environ: Mapping[str, str]) -> tuple[list[str], SandboxrunError | None]:
    """Write the file list and the lock of a new folder: the paths of what was made, and why there is no lock, if so."""
    from sandboxrun.packages import listing, locking

    script = locking.open_script(os.path.join(name, "worker.py"))
    fault = None
    made = none = locking.lock_beside(script)
    try:
        made = locking.new_lock(script, none, environ, pylock=False, upgrade=False)
    except SandboxrunError as error:
        fault = error
    locking.write(script, made, listing.digests(script.folder, ["words.py"]))
    return [os.path.join(name, made.name)] if made.text is not None else [], fault


def _other_name_hint(name: str) -> str:
    import itertools
    import shlex

    base = name.rstrip("/")
    free = next(other for number in itertools.count(2) if not os.path.lexists(other := f"{base}-{number}"))
    return f"sandboxrun init {shlex.quote(free)}"
