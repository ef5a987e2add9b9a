"""A worker that does what a request says, and leaves traces of it."""

import os
import time

from sandboxrun import worker

r = worker.connect()


@worker.handler
def handle(request):
    request.progress("half")
    if request.data.get("kill"):
        os.kill(os.getpid(), 9)
    if request.data.get("wait"):
        while not r.llen("go:on"):
            time.sleep(0.01)
    if request.data.get("fail"):
        raise ValueError("no\x1b[31m")
    request.trace(seen="by me")
    return {"text": "hi"}


worker.run()
