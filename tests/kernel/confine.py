"""Run one script in the sandbox, without Redis or a download: the tests' shortest way to the boundary.

    python confine.py '{"script": PATH, "scratch": FOLDER, "allow": {KIND: TEXT}, "deny": {…}, "redis": "HOST:PORT" or PATH,
                       "limits": {NAME: NUMBER}, "files": OPEN_FILES, "missing": [FEATURE], "degraded": [FEATURE],
                       "filters": FOLDER}'

`files` is of the supervisor itself; `missing` makes the probe find features missing; `filters` keeps compiled filters.
SANDBOXRUN_TEST_CHILD says how the child is made: `spawned`, the default; `spare`, before its key is known and with another
start in between; `forked`, from a zygote.
SANDBOXRUN_TESTS_MUTATE=ROW or ROW:CONDITION takes that out of the filter's table (mutate.py).

Exits with the script's own code. What is confined is what `sandboxrun` confines: same policy, child and supervisor.
"""

import contextlib
import json
import os
import resource
import sys
from collections.abc import Iterator

from sandboxrun.config.limits import Limits
from sandboxrun.config.permissions import NetTarget, Permissions
from sandboxrun.files import Kept
from sandboxrun.log import Log
from sandboxrun.sandbox.compile import features, policy, seccomp
from sandboxrun.sandbox.compile.features import Features
from sandboxrun.sandbox.supervisor.child import Child, Confinement, Script, this_interpreter
from sandboxrun.sandbox.supervisor.spawn import Spawned
from sandboxrun.sandbox.supervisor.supervisor import Supervisor
from sandboxrun.sandbox.supervisor.zygote import Zygote

KEY = "test:1:h"


def mutate(what: str) -> None:
    if not what:
        return
    rows = list(seccomp.rules())
    number, _, condition = what.partition(":")
    row = rows.pop(int(number))
    if condition:
        args = row.args[: int(condition)] + row.args[int(condition) + 1 :]
        rows.insert(int(number), row._replace(args=args))
    seccomp.rules = lambda: iter(rows)


@contextlib.contextmanager
def new_child(kernel: Features) -> Iterator[Child]:
    """A child of the kind that SANDBOXRUN_TEST_CHILD says; another one of its kind waits beside it."""
    with contextlib.ExitStack() as stack:
        match os.environ.get("SANDBOXRUN_TEST_CHILD", "spawned"):
            case "spawned":
                child = Child(KEY, kernel)
            case "spare":
                spare = Spawned("spare", warm=True)
                stack.callback(Child("test:2:h", kernel).close)
                child = Child(KEY, kernel, spare)
            case "forked":
                zygote = Zygote()
                stack.callback(zygote.close)
                forked = zygote.fork(KEY)
                stack.callback(Child("test:2:h", kernel, zygote.fork("test:2:h")).close)
                child = Child(KEY, kernel, forked)
            case kind:
                raise ValueError(f"SANDBOXRUN_TEST_CHILD is {kind!r}")
        stack.callback(child.close)
        yield child


def kept_filters(spec: dict) -> Kept | None:
    if "filters" not in spec or os.environ.get("SANDBOXRUN_TESTS_MUTATE"):
        return None  # what is kept is of the table as it stands in its file
    return Kept(spec["filters"], os.path.join(spec["filters"], "key"))


def confinement(spec: dict, log: Log) -> tuple[Features, Confinement]:
    kernel = features.probe()
    kernel = Features(frozenset(f for f in kernel.available if f.label not in spec.get("missing", ())))
    for message in kernel.require(spec.get("degraded", ())):
        log.warning("degraded", message)
    mutate(os.environ.get("SANDBOXRUN_TESTS_MUTATE", ""))
    lists = [
        (verdict, kind, text, "test") for verdict in ("allow", "deny") for kind, text in spec.get(verdict, {}).items()
    ]
    redis = spec.get("redis", "127.0.0.1:1")
    interpreter = this_interpreter()
    built = policy.build(
        Permissions.parse(lists),
        key=KEY,
        interpreter=interpreter,
        scratch=spec["scratch"],
        local_source=spec["script"],
        redis=redis if redis.startswith("/") else NetTarget.parse(redis),
        protected=(),
        limits=Limits(**spec.get("limits", {})),
    )
    with open(spec["script"], "rb") as file:
        script = Script(file.read(), spec["script"], None, None, is_file=True)
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": spec["scratch"], "TMPDIR": spec["scratch"]}
    return kernel, Confinement(
        key=KEY,
        policy=built,
        script=script,
        interpreter=interpreter,
        scratch=spec["scratch"],
        env=env,
        kept=kept_filters(spec),
    )


def serve(child: Child, confinement: Confinement, log: Log, *, signals: bool) -> int:
    child.stdin.close()
    child.check_supervision()
    listener = child.confine(confinement)
    supervisor = Supervisor(child, listener, confinement, trusted=None, log=log)
    try:
        supervisor.resolver.pin_denied()
        if signals:
            supervisor.handle_signals()
        return supervisor.serve()
    finally:
        supervisor.close()


def main(spec: dict) -> int:
    log = Log()
    if "files" in spec:
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec["files"], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    kernel, wanted = confinement(spec, log)
    with new_child(kernel) as child:
        return serve(child, wanted, log, signals=True)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
