"""Answers with the time that it has, in several ways, and with random numbers."""

import asyncio
import datetime
import random
import time
import uuid

from sandboxrun import worker

STARTED, FIRST = time.time(), random.random()


@worker.handler
def handle(request):
    return {
        "started": STARTED,
        "wall": time.time(),
        "nanos": time.time_ns(),
        "now": datetime.datetime.now(datetime.UTC).isoformat(),
        "today": str(datetime.date.today()),
        "remaining": round(request.remaining(), 3),
        "first": FIRST,
        "random": [random.randrange(1000) for _ in range(3)],
        "uuid": str(uuid.uuid4()),
    }


@worker.handler("slow")
async def wait(request):
    await asyncio.sleep(0.001)
    return {"wall": time.time(), "random": random.randrange(1000)}


worker.run()
