"""Workers that promise nothing, as references for ours: NAME ID. See loop.py."""

import os
import sys
import time

NAME, ID = sys.argv[1], sys.argv[2]
URL, PID = os.environ["REDIS_URL"], str(os.getpid())
STREAM, RESPONSES, KEY = "bench:req:x", "bench:res:x", f"bench:{ID}:h"


def with_redis_py(most: int) -> None:
    """The reply as in protocol.md; each read also checks `pid`."""
    import json

    import redis

    r = redis.Redis.from_url(URL, socket_timeout=10)
    r.hset(KEY, "pid", PID)
    while r.hget(KEY, "pid") == PID.encode():
        for _, entries in r.xreadgroup("worker", ID, {STREAM: ">"}, count=most, block=1000) or []:
            with r.pipeline(transaction=True) as pipe:
                for xid, fields in entries:
                    ref = fields[b"ref"].decode()
                    body = json.dumps({"ref": ref, "code": 200, "text": json.loads(fields[b"data"])["text"]})
                    pipe.lpush(f"res:{ref}", body)
                    pipe.expire(f"res:{ref}", 8)
                    pipe.xadd(
                        RESPONSES, {"ref": ref, "type": "bench", "xid": xid, "code": 200, "res": body}, maxlen=1000
                    )
                    pipe.hset(f"req:{ref}:h", "benchTrace", body)
                    pipe.expire(f"req:{ref}:h", 120, nx=True)
                pipe.xack(STREAM, "worker", *[xid for xid, _ in entries])
                pipe.execute()


def bare() -> None:
    """hiredis and a socket: the writes of batch k and the read of k + 2 in one write, as long as batches are full."""
    import json

    import hiredis

    from sandboxrun.redis.connection import Connection

    pack = hiredis.pack_command
    connection = Connection(URL)
    connection.open()
    connection.set_wait(1)
    connection.call("HSET", KEY, "pid", PID)
    look = pack(("HGET", KEY, "pid"))
    read = ("XREADGROUP", "GROUP", "worker", ID, "COUNT", 100)
    at_once = look + pack((*read, "STREAMS", STREAM, ">"))
    waiting = look + pack((*read, "BLOCK", 1000, "STREAMS", STREAM, ">"))
    multi, execute = pack(("MULTI",)), pack(("EXEC",))

    def answers(entries: list) -> tuple[bytes, int]:
        parts = [multi]
        for xid, flat in entries:
            fields = dict(zip(flat[::2], flat[1::2], strict=True))
            ref = fields[b"ref"]
            body = json.dumps({"ref": ref.decode(), "code": 200, "text": json.loads(fields[b"data"])["text"]})
            parts.append(pack(("LPUSH", b"res:" + ref, body)))
            parts.append(pack(("EXPIRE", b"res:" + ref, 8)))
            parts.append(pack(("XADD", RESPONSES, "MAXLEN", "~", 1000, "*", "ref", ref, "type", "bench", "xid", xid, "code", 200, "res", body)))  # fmt: skip
            parts.append(pack(("HSET", b"req:" + ref + b":h", "benchTrace", body)))
            parts.append(pack(("EXPIRE", b"req:" + ref + b":h", 120, "NX")))
        parts += [pack(("XACK", STREAM, "worker", *[xid for xid, _ in entries])), execute]
        return b"".join(parts), 5 * len(entries) + 3

    def entries() -> list:
        pid, found = connection.read_many(2)
        if pid != PID.encode():
            sys.exit()
        return found[0][1] if found else []

    connection.send(waiting)
    while True:
        found = entries()
        if len(found) == 100:
            connection.send(at_once)
            before = 0
            while found:
                data, count = answers(found)
                connection.send(data + at_once)
                if before:
                    connection.read_many(before)
                found, before = entries(), count
            connection.read_many(before)
            found = entries()
        if found:
            data, count = answers(found)
            connection.send(data + waiting)
            connection.read_many(count)
        else:
            connection.send(waiting)


def replay() -> None:
    """Send standard input to Redis, discard the replies, and print the seconds."""
    import threading

    from sandboxrun.redis.connection import Connection, pack

    data = sys.stdin.buffer
    parts = []
    while line := data.readline():
        parts.append(data.read(int(line)))
    connection = Connection(URL)
    connection.open()
    connection.set_wait(60)
    sock = connection._socket
    begin = time.perf_counter()
    thread = threading.Thread(target=lambda: [sock.sendall(part) for part in [*parts, pack("ECHO", "the-end-of-it")]])
    thread.start()
    tail = b""
    while b"the-end-of-it" not in tail:
        tail = tail[-20:] + sock.recv(1 << 20)[-40:]
    print(time.perf_counter() - begin)


{"one-by-one": lambda: with_redis_py(1), "pipelined": lambda: with_redis_py(100), "bare": bare, "replay": replay}[
    NAME
]()
