"""What a warm start imports, in the supervisor and in the worker: a list, for a time would differ from machine to machine.

A module that is on no list here fails the test. Either import it where it is used, after the start, or, where a warm start
cannot do without it, add it. One of ours that is listed and not imported any more fails it too: remove the line.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import redis
from runner import Runner

from sandboxrun import client

# Never, in neither: each of them takes longer to import than all that a warm start needs of Python; re and json, which imports
# it, a tenth of the whole start.
FORBIDDEN = frozenset(
    """argparse asyncio concurrent.futures cryptography dataclasses email http http.client httpx importlib.metadata inspect json
    multiprocessing platformdirs pyseccomp re redis ssl tomllib unittest urllib urllib.request""".split()
)
SUPERVISOR = frozenset(
    """
    binascii collections collections.abc contextlib errno fcntl
    functools gc hiredis hiredis.hiredis hiredis.version ipaddress itertools keyword operator pwd
    reprlib resource select struct threading types warnings sandboxrun
    sandboxrun.cli sandboxrun.cli.commands sandboxrun.cli.run sandboxrun.config sandboxrun.config.covers
    sandboxrun.config.fields sandboxrun.config.keys sandboxrun.config.limits sandboxrun.config.permissions
    sandboxrun.config.secrets sandboxrun.config.targets sandboxrun.config.worker sandboxrun.digests sandboxrun.enums
    sandboxrun.errors sandboxrun.fetch sandboxrun.fetch.cache sandboxrun.fetch.integrity sandboxrun.fetch.parse
    sandboxrun.fetch.resolve sandboxrun.files sandboxrun.host sandboxrun.host.configuration
    sandboxrun.host.folders sandboxrun.host.plan sandboxrun.host.run
    sandboxrun.host.runplan sandboxrun.log sandboxrun.modulecache sandboxrun.plainjson sandboxrun.policy
    sandboxrun.policy.approval sandboxrun.policy.audit sandboxrun.policy.ceiling sandboxrun.policy.file
    sandboxrun.records sandboxrun.redis sandboxrun.redis.acl sandboxrun.redis.address sandboxrun.redis.claim
    sandboxrun.redis.connection sandboxrun.redis.hashes sandboxrun.redis.lease sandboxrun.redis.login
    sandboxrun.redis.replies sandboxrun.redis.store sandboxrun.redis.transaction sandboxrun.redis.users
    sandboxrun.redis.watch sandboxrun.sandbox
    sandboxrun.sandbox.compile sandboxrun.sandbox.compile.code_paths sandboxrun.sandbox.compile.elf
    sandboxrun.sandbox.compile.features sandboxrun.sandbox.compile.filters sandboxrun.sandbox.compile.grants
    sandboxrun.sandbox.compile.landlock sandboxrun.sandbox.compile.paths sandboxrun.sandbox.compile.policy
    sandboxrun.sandbox.supervisor sandboxrun.sandbox.supervisor.cgroup sandboxrun.sandbox.supervisor.child
    sandboxrun.sandbox.supervisor.dispatch sandboxrun.sandbox.supervisor.ending
    sandboxrun.sandbox.supervisor.handlers sandboxrun.sandbox.supervisor.handlers.connect
    sandboxrun.sandbox.supervisor.handlers.listen sandboxrun.sandbox.supervisor.handlers.metadata
    sandboxrun.sandbox.supervisor.handlers.processes sandboxrun.sandbox.supervisor.listener
    sandboxrun.sandbox.supervisor.output sandboxrun.sandbox.supervisor.outputlog
    sandboxrun.sandbox.supervisor.resolver
    sandboxrun.sandbox.supervisor.scratch sandboxrun.sandbox.supervisor.spawn
    sandboxrun.sandbox.supervisor.supervisor sandboxrun.sandbox.supervisor.target sandboxrun.sandbox.syscalls
    sandboxrun.timing
    """.split()
)
WORKER = frozenset(
    """
    sandboxrun.sandbox sandboxrun.sandbox.child sandboxrun.sandbox.child.health sandboxrun.sandbox.child.hooks
    sandboxrun.sandbox.child.names
    sandboxrun.sandbox.child.patches sandboxrun.sandbox.child.runtime
    atexit gc genericpath hiredis hiredis.hiredis hiredis.version itertools os os.path posixpath resource stat struct
    sandboxrun sandboxrun.config sandboxrun.config.fields sandboxrun.config.keys
    sandboxrun.errors sandboxrun.healthpage sandboxrun.modulecache sandboxrun.plainjson sandboxrun.protocol
    sandboxrun.protocol.calling sandboxrun.protocol.reply sandboxrun.protocol.request sandboxrun.redis
    sandboxrun.redis.address sandboxrun.redis.connection sandboxrun.redis.replies sandboxrun.worker
    sandboxrun.worker.answer sandboxrun.worker.app sandboxrun.worker.base sandboxrun.worker.rendering
    sandboxrun.worker.claims sandboxrun.worker.context sandboxrun.worker.handlers sandboxrun.worker.health
    sandboxrun.worker.outage sandboxrun.worker.output sandboxrun.worker.process
    sandboxrun.worker.request sandboxrun.worker.responses sandboxrun.worker.serial sandboxrun.worker.session
    sandboxrun.worker.streams sandboxrun.worker.sweep
    """.split()
)

SCRIPT = """\
from sandboxrun import worker

@worker.handler
def handle(request):
    return {"text": request.data["text"]}

worker.run()
import sys
print("\\n".join(sys.modules))
"""

# The command, and at its end what it has imported: -X importtime does not see what importlib.import_module imports, and
# sys.modules not what was taken out of it again.
COMMAND = """\
import os, sys
def exit(code, exit=os._exit):
    print("modules:", *sys.modules, file=sys.stderr)
    sys.stderr.flush()
    exit(code)
os._exit = exit
sys.argv[:] = sys.argv[1:]
from sandboxrun.cli import main
main()
"""
IDLE = "import sys; print('modules:', *sys.modules, file=sys.stderr)"
ELSEWHERE = frozenset("msvcrt nt org winreg".split())  # asked for on every system, found on none of ours


@pytest.fixture
def imported(r: redis.Redis, run: Runner, tmp_path) -> tuple[set[str], set[str]]:  # type: ignore[no-untyped-def]
    """What supervisor and worker of a second start have imported, without what Python itself does."""
    script = tmp_path / "worker.py"
    script.write_text(SCRIPT)
    r.hset("t:1:h", mapping={"url": str(script), "version": "local", "requestLimit": "1"})
    run.set_policy(None)
    for _ in range(2):
        client.send(r, "t", {"text": "hi"}, now="x")
        command = [sys.executable, "-X", "importtime", "-c", COMMAND, *run.command("t", "1")]
        done = subprocess.run(command, env=run.env, cwd=run.home, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    idle = subprocess.run([sys.executable, "-X", "importtime", "-c", IDLE], capture_output=True, text=True, check=True)
    child = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
    )
    supervisor = public(imports(done.stderr)) - public(imports(idle.stderr))
    worker = public(done.stdout.split()) - public(child.stdout.split())
    assert {"sandboxrun.cli.run", "sandboxrun.host.run"} <= supervisor
    assert {"sandboxrun.worker.app"} <= worker
    return supervisor, worker


def imports(report: str) -> list[str]:
    """`import time: SELF | CUMULATIVE | NAME`, and once a line of headings; and `modules: NAME…`."""
    lines = [line.rpartition("|")[2].strip() for line in report.splitlines() if line.startswith("import time:")]
    dumped = [line.split()[1:] for line in report.splitlines() if line.startswith("modules: ")]
    assert len(dumped) == 1
    return [name for name in (*lines, *dumped[0]) if name != "imported package"]


def public(names: list[str]) -> set[str]:
    """Without those that differ between versions of Python: a private module comes with a public one."""
    return {
        name
        for name in names
        if name.partition(".")[0] not in ELSEWHERE and not any(part.startswith("_") for part in name.split("."))
    }


def check(found: set[str], allowed: frozenset[str]) -> None:
    forbidden = {name for name in found for bad in FORBIDDEN if name == bad or name.startswith(bad + ".")}
    assert not forbidden, f"forbidden in a warm start: {sorted(forbidden)}"
    new = found - allowed
    assert not new, f"not on the list of what a warm start may import: {sorted(new)}"
    gone = {name for name in allowed if name.partition(".")[0] == "sandboxrun"} - found
    assert not gone, f"imported no more: take them off the list: {sorted(gone)}"


def test_a_warm_supervisor_imports_only_what_is_on_the_list(imported: tuple[set[str], set[str]]) -> None:
    check(imported[0], SUPERVISOR)


def test_a_warm_worker_imports_only_what_is_on_the_list(imported: tuple[set[str], set[str]]) -> None:
    check(imported[1], WORKER)
