"""worker.py KEY, with REDIS_URL: a simple port with redis-py. Answers requestLimit requests."""

import json
import os
import sys
from datetime import UTC, datetime

import redis


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


key = sys.argv[1]
type_ = key.split(":")[0]
stream, group = f"{type_}:req:x", "worker"
r = redis.Redis.from_url(os.environ["REDIS_URL"], decode_responses=True, socket_timeout=10)
with r.pipeline(transaction=False) as pipe:
    pipe.hgetall(f"{type_}:h").hgetall(key).xgroup_create(stream, group, id="0", mkstream=True)
    shared, own, _ = pipe.execute(
        raise_on_error=False
    )  # a group that is there already is an error that changes nothing
limit, done = int((shared | own).get("requestLimit", 0)), 0
while not limit or done < limit:
    for _, entries in r.xreadgroup(group, key, {stream: ">"}, count=1, block=2000) or []:
        for xid, fields in entries:
            received, ref = now(), fields["ref"]
            text = json.loads(fields["data"])["text"]
            completed = now()
            res = json.dumps({"ref": ref, "source": type_, "code": 200, "completed": completed, "text": text})
            with r.pipeline() as pipe:
                pipe.lpush(f"res:{ref}", res).expire(f"res:{ref}", 8)
                pipe.xadd(f"{type_}:res:x", {"xid": xid, "ref": ref, "type": type_, "code": "200"})
                trace = json.dumps({"received": received, "completed": completed, "res": res})
                pipe.hset(f"req:{ref}:h", f"{type_}Trace", trace).expire(f"req:{ref}:h", 120)
                pipe.xack(stream, group, xid).execute()
            done += 1
