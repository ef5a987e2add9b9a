"""A worker of an agent's tests: it answers who it is, and ends or hangs as it is asked to."""

import os
import time

from sandboxrun import worker


@worker.handler
def handle(request):
    data = request.data
    if "hold" in data:
        with open(data["hold"], "a") as file:
            file.write(f"{os.getpid()}\n")
        while not os.path.exists(data["until"]):
            time.sleep(0.01)
    if "exit" in data:
        os._exit(data["exit"])
    return {"pid": os.getpid(), "id": os.environ.get("SANDBOXRUN_ID", "")}


worker.run()
