"""A worker in a thread that speaks the protocol by hand: it answers as a test wants, and survives an outage of Redis."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import redis

Answer = Callable[[dict[str, Any], str], bytes | str | None]  # from the data and the ref; None: no answer


def plain(data: Any, ref: str) -> str:
    return json.dumps({"ref": ref, "code": 200, "data": data})


class Answering:
    """A context manager. `seen`: the data of all requests, in order; a request that ran twice is in it twice."""

    def __init__(self, url: str, answer: Answer = plain, *, traces: bool = True, type_: str = "t") -> None:
        self._url, self._answer, self._traces, self._type = url, answer, traces, type_
        self.seen: list[Any] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Answering:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)

    def _run(self) -> None:
        last, run_id = "0", ""
        while not self._over.is_set():
            try:
                with redis.Redis.from_url(self._url, decode_responses=True, socket_timeout=3) as r:
                    found = r.info("server")["run_id"]
                    if found != run_id:  # another server, or one that has lost its data
                        last, run_id = "0", found
                    while not self._over.is_set():
                        for _, entries in r.xread({f"{self._type}:req:x": last}, block=100, count=100) or ():
                            for xid, fields in entries:
                                last = xid
                                self._handle(r, fields)
            except redis.RedisError:
                self._over.wait(0.05)

    def _handle(self, r: redis.Redis, fields: dict[str, str]) -> None:
        ref, data = fields["ref"], json.loads(fields["data"])
        self.seen.append(data)
        reply = self._answer(data, ref)
        if reply is None:
            return
        with r.pipeline(transaction=True) as pipe:
            pipe.lpush(f"res:{ref}", reply)
            pipe.expire(f"res:{ref}", 8)
            if self._traces:
                text = reply.encode() if isinstance(reply, str) else reply
                trace = b'{"received":"","completed":"","res":%b}' % text
                pipe.hset(f"req:{ref}:h", f"{self._type}Trace", trace)
            pipe.execute()
