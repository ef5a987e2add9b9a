"""The files of a new worker: small, and each of them works as it is."""

from __future__ import annotations

import contextlib
import os

from sandboxrun.dev.target import check_text, type_from
from sandboxrun.errors import UsageError

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
    with pytest.raises(client.BadRequest, match="expected a name"):
        call({})
'''
_README = """\
# @NAME@

A worker for sandboxrun. `worker.py` is all of it.

```console
$ pip install 'sandboxrun[dev,debug]' pytest
$ sandboxrun dev .               # type name=world; edit worker.py, save, ask again; exit ends
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
FILES = {"worker.py": _WORKER, "test_worker.py": _TEST, "README.md": _README, ".vscode/launch.json": _LAUNCH}


def make(name: str) -> list[str]:
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
        for path, text in FILES.items():
            whole = os.path.join(folder, path)
            os.makedirs(os.path.dirname(whole), exist_ok=True)
            with open(whole, "x", encoding="utf-8") as file:  # never over a file that came meanwhile
                file.write(text.replace("@TYPE@", type_).replace("@NAME@", os.path.basename(folder)))
            made.append(os.path.join(name, path))
    except OSError as error:
        raise UsageError(f"{name[:200]} cannot be made: {error.strerror}") from error
    return made


def _other_name_hint(name: str) -> str:
    import itertools
    import shlex

    base = name.rstrip("/")
    free = next(other for number in itertools.count(2) if not os.path.lexists(other := f"{base}-{number}"))
    return f"sandboxrun init {shlex.quote(free)}"
