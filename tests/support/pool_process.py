"""A pool in a process of its own: `python pool_process.py REDIS_URL TYPE COUNT [zygote]` starts workers 1 to COUNT.

Once all run, it prints their pids and then that of a spare, and waits.
"""

import sys
import time

from pooled import Heard, wait_for

from sandboxrun.host.pool import Pool
from sandboxrun.host.runplan import RunOptions
from sandboxrun.log import Log
from sandboxrun.sandbox.supervisor.zygote import Zygote


def main(url: str, type_: str, count: int, *, zygote: bool) -> None:
    pool, on = Pool(Log(), spares=1, redis_url=url, zygote=Zygote() if zygote else None), Heard()
    started = [pool.start(RunOptions(type_, str(number + 1), url), on=on) for number in range(count)]
    wait_for(lambda: len(on.begun) == count)
    wait_for(lambda: pool.spares.waiting == 1)
    spare = pool.spares.take()
    print(*[running.pid for running in started], spare.pid, flush=True)
    time.sleep(600)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]), zygote="zygote" in sys.argv)
