"""runner.py TYPE ID REDIS_URL [PREFIX…]: a simple port with redis-py. Reads the hash, runs its script, keeps `pid`."""

import os
import subprocess
import sys

import redis

type_, id_, url, *prefix = sys.argv[1:]
key = f"{type_}:{id_}:h"
r = redis.Redis.from_url(url, decode_responses=True)
with r.pipeline(transaction=False) as pipe:
    shared, own = pipe.hgetall(f"{type_}:h").hgetall(key).execute()
script = (shared | own)["url"]
with subprocess.Popen([*prefix, sys.executable, script, key], env=os.environ | {"REDIS_URL": url}) as child:
    r.hset(key, "pid", child.pid)
r.hdel(key, "pid")
sys.exit(child.returncode)
