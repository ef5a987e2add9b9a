"""Writes to the fence of another type, as fast as Redis answers, and counts the refusals."""

import os
import time

import redis

r = redis.Redis.from_url(os.environ["REDIS_URL"], socket_timeout=5)
refused = tried = 0
end = time.monotonic() + 4
while time.monotonic() < end:
    for key in ("t:req:x:fence:1:f", "req:t:req:x 1:h"):
        for command in (("DEL", key), ("HSET", key, "x", "1")):
            tried += 1
            try:
                r.execute_command(*command)
            except redis.ResponseError as error:
                refused += "NOPERM" in str(error) or "permission" in str(error).lower()
    time.sleep(0.0005)
print(tried, refused, flush=True)
