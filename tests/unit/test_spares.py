"""Children that are spawned ahead."""

from __future__ import annotations

import os
import signal

from arena import wait_for

from sandboxrun.sandbox.supervisor.child import readable
from sandboxrun.sandbox.supervisor.spares import Spares


def test_a_spare_that_has_died_is_not_handed_out() -> None:
    """As by the kernel, for want of memory."""
    spares = Spares(1)
    try:
        wait_for(lambda: spares.waiting == 1, 20)
        dead = spares._ready[0]
        os.kill(dead.pid, signal.SIGKILL)
        assert readable(dead.pidfd, 20)
        taken = spares.take()
        assert taken.pid != dead.pid
        assert not readable(taken.pidfd, 0)
        taken.end()
    finally:
        spares.close()
