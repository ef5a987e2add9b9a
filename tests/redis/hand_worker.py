"""A worker by hand: redis-py and the protocol, without the SDK. Kept as proof that any script can be one."""

import json
import os
import sys

import redis

key = sys.argv[1]
line = sys.stdin.readline().split()
r = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, socket_timeout=10)
type_ = key.split(":")[0]
stream = f"{type_}:req:x"
r.hset(key, "pid", os.getpid())
try:
    r.xgroup_create(stream, "worker", id="0", mkstream=True)
except redis.ResponseError:
    pass
while r.hget(key, "pid") == str(os.getpid()):
    for _, entries in r.xreadgroup("worker", "1", {stream: ">"}, count=1, block=500) or []:
        for xid, fields in entries:
            reply = {
                "ref": fields["ref"],
                "source": type_,
                "code": 200,
                "echo": fields["data"],
                "key": line[0] if line else None,
            }
            with r.pipeline() as pipe:
                pipe.lpush("res:" + fields["ref"], json.dumps(reply))
                pipe.expire("res:" + fields["ref"], 8)
                pipe.xack(stream, "worker", xid)
                pipe.execute()
