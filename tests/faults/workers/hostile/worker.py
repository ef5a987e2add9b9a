"""A worker of another type that wants nobody else to be served: it attacks what guards the replies of `t`, until it is ended."""

import time

import redis

from sandboxrun import worker

VICTIMS = ("1", "2")
KEYS = [key for id_ in VICTIMS for key in (f"req:t:req:x {id_}:h", f"t:req:x:fence:{id_}:f")]

r = worker.connect()
print("begun", flush=True)
while True:
    for key in KEYS:
        for command in (("DEL", key), ("HSET", key, "x", "1")):
            try:
                r.execute_command(*command)
            except redis.RedisError:
                pass
    time.sleep(0.001)
