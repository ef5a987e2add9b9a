"""Where a worker may run programs: a process that ends them all should the supervisor be killed.

PDEATHSIG ends the worker itself then, but is not inherited by what it has started. Needed for nothing else, so it is
there only where a run grant is.
"""

from __future__ import annotations

import os
import subprocess
import sys

from sandboxrun.errors import SandboxError


class Guard:
    """Waits for the end of a pipe that only we hold open; then kills the session."""

    def __init__(self, session: int) -> None:
        read, self._write = os.pipe2(os.O_CLOEXEC)
        code = (
            "import os, signal, sys\n"
            "for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):\n"
            "    signal.signal(number, signal.SIG_IGN)\n"
            f"sys.path.append({os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))!r})\n"
            "from sandboxrun.sandbox.processes import kill_session\n"
            "os.write(1, b'.')\n"
            "os.read(0, 1)\n"
            f"kill_session({session})\n"
        )
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", code],
                stdin=read,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(read)
        assert self._process.stdout is not None
        with self._process.stdout as ready:
            if not ready.read(1):
                raise SandboxError("the process that guards the worker's programs did not start")

    def close(self) -> None:
        os.close(self._write)
        self._process.wait()
