"""A batch handler that does what its requests say, and notes each call: the sizes, and how often it was given an entry."""

import os
import time

from sandboxrun import worker

r = worker.connect()


def options(request):
    data = request.data
    return data if isinstance(data, dict) else {}


@worker.batch(size=100, seconds=0.1)
def store(requests):
    r.rpush("noted:calls", len(requests))
    if r.exists("noted:away"):
        raise worker.Unavailable("the store is away")
    results = []
    for request in requests:
        r.hincrby("noted:given", request.xid, 1)
        try:
            wish = options(request)
        except worker.BadRequest as error:
            results.append(error)
            continue
        if wish.get("kill"):
            os.kill(os.getpid(), 9)
        if wish.get("fail"):
            raise ValueError("poison")
        time.sleep(wish.get("sleep", 0))
        results.append(
            worker.BadRequest("refused") if wish.get("refuse") else {"n": wish.get("n"), "of": len(requests)}
        )
    for request in requests:
        r.hsetnx("noted:stored", request.xid, request.deliveries)
    return results[:-1] if r.exists("noted:short") else results


worker.run()
