"""An event loop that makes the descriptors that it watches non-blocking."""

import asyncio
import os

from sandboxrun import worker


class Loop(asyncio.SelectorEventLoop):
    def add_reader(self, fd, *arguments):
        os.set_blocking(fd, False)
        super().add_reader(fd, *arguments)


class Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self):
        return Loop()


asyncio.set_event_loop_policy(Policy())


@worker.handler
async def handle(request):
    await asyncio.sleep(request.data.get("sleep", 0))
    return {"n": request.data["n"], "loop": "uvloop"}


worker.run()
