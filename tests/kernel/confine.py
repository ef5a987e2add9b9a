"""Run one script in the sandbox, without Redis or a download: the tests' shortest way to the boundary.

    python confine.py '{"script": PATH, "scratch": FOLDER, "allow": {KIND: TEXT}, "deny": {…}, "redis": "HOST:PORT" or PATH,
                       "limit": OPEN_FILES, "abi": LANDLOCK_ABI}'

Exits with the script's own code. What is confined is what `sandboxrun` confines: same policy, child and supervisor.
"""

import json
import resource
import sys

from sandboxrun.log import Log
from sandboxrun.permissions import NetTarget, Permissions
from sandboxrun.sandbox import landlock, policy
from sandboxrun.sandbox.launch import Child, Script, this_interpreter
from sandboxrun.sandbox.supervisor import Supervisor

KEY = "test:1:h"


def main(spec: dict) -> int:
    if "limit" in spec:  # the supervisor's own open files
        resource.setrlimit(resource.RLIMIT_NOFILE, (spec["limit"], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if "abi" in spec:  # as on an older kernel
        landlock.kernel_abi = lambda: spec["abi"]
    lists = [
        (verdict, kind, text, "test") for verdict in ("allow", "deny") for kind, text in spec.get(verdict, {}).items()
    ]
    redis = spec.get("redis", "127.0.0.1:1")
    built = policy.build(
        Permissions.parse(lists),
        key=KEY,
        interpreter=this_interpreter(),
        scratch=spec["scratch"],
        local_source=spec["script"],
        redis=redis if redis.startswith("/") else NetTarget.parse(redis),
        protected=(),
    )
    with open(spec["script"], "rb") as file:
        script = Script(file.read(), spec["script"], None, is_file=True)
    env = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": spec["scratch"], "TMPDIR": spec["scratch"]}
    child = Child(KEY)
    try:
        child.stdin.close()
        listener = child.confine(
            built, script, key=KEY, interpreter=this_interpreter(), scratch=spec["scratch"], env=env
        )
        supervisor = Supervisor(child, listener, built, key=KEY, scratch=spec["scratch"], trusted=(), log=Log())
        try:
            supervisor.resolver.pin_denied()
            return supervisor.serve()
        finally:
            supervisor.close()
    finally:
        child.close()


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
