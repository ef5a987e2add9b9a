"""Sets its own pid, as a script without the SDK does, and tries to write the rest of the hash."""

import asyncio
import os
import sys

import redis
import redis.asyncio

url = os.environ.get("SANDBOXRUN_HASH_URL") or os.environ["REDIS_URL"]
r, key, pid = redis.Redis.from_url(url, decode_responses=True), sys.argv[1], os.getpid()
assert r.hset(key, "pid", pid) == 0 and r.hset(key, mapping={"pid": str(pid)}) == 0
assert r.hget(key, "pid") == str(pid)
with r.pipeline() as pipe:
    pipe.hset(key, "pid", pid).hget(key, "pid")
    assert pipe.execute() == [0, str(pid)]


async def by_asyncio():
    async with redis.asyncio.Redis.from_url(url) as client:
        return await client.hset(key, "pid", pid)


assert asyncio.run(by_asyncio()) == 0
for change in (
    lambda: r.hset(key, "pid", 1),
    lambda: r.hset(key, mapping={"pid": pid, "allowNet": "*"}),
    lambda: r.hset("t:2:h", "pid", pid),
    lambda: r.hdel(key, "url"),
):
    try:
        change()
    except redis.exceptions.NoPermissionError:
        continue
    raise AssertionError("written")
assert r.hdel(key, "pid") == 1
print("done")
