"""Odd things that a handler does around a call of a service in its own process, or leaves behind."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
import redis
from effect_workers import plain
from loop_workers import answer

SCRIPT = """
import asyncio, os, threading, time
from sandboxrun import client, connect, worker
from sandboxrun.protocol.calling import current

loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()
told, later = threading.Event(), []

@worker.service("price")
class Price:
    def of(self, x: list) -> dict:
        return {"size": len(x)}

    def many(self) -> dict:
        return {"made": [[1]] * 6_000_000}

async def leave():
    await asyncio.sleep(0)
    while not told.is_set():
        await asyncio.sleep(0.01)
    later.append(current.get().ref)

@worker.handler("large", timeout=0.2)
def large(request):
    return connect("price").of(x=[[[1]] * 3_000_000])

@worker.handler("large-result", timeout=0.2)
def large_result(request):
    return connect("price").many()

@worker.handler("leave")
def left_behind(request):
    asyncio.run_coroutine_threadsafe(leave(), loop)
    time.sleep(0.2)  # until it has begun

@worker.handler("look")
def look(request):
    told.set()
    while not later:
        time.sleep(0.01)
    return {"saw": later[0]}

@worker.handler("fork")
def fork(request):
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, str(connect("price").of(x=[1, 2])).encode())
        try:
            worker.state("count")["n"] = "1"
        except RuntimeError as error:
            os.write(write, b" " + type(error).__name__.encode())
        os._exit(0)
    os.close(write)
    said = b""
    while part := os.read(read, 100):
        said += part
    os.wait()
    return {"said": said.decode()}

worker.run()
"""


@pytest.fixture
def ask(r: redis.Redis, redis_url: str, tmp_path: Path) -> Any:
    code = textwrap.dedent(SCRIPT)
    with plain(r, redis_url, tmp_path, code):

        def asked(ref: str, type_: str) -> Any:
            r.xadd("t:req:x", {"ref": ref, "type": type_, "data": "{}"})
            return answer(r, ref)

        yield asked


@pytest.mark.parametrize("type_", ["large", "large-result"])
def test_a_handlers_timeout_ends_a_direct_call_of_much_data(ask: Any, type_: str) -> None:
    """Such data is encoded in C, so the signal is handled right after that, within code of ours."""
    reply = ask("one", type_)
    assert reply["code"] == 500
    assert "0.2 s" in reply["err"]["message"]


def test_what_a_handler_has_left_running_does_not_belong_to_the_next_request(ask: Any) -> None:
    assert ask("first", "leave")["code"] == 200
    assert ask("second", "look")["saw"] == "first"


def test_a_forked_child_may_call_a_service_and_gets_no_state(ask: Any) -> None:
    assert ask("one", "fork")["said"] == "{'size': 2} RuntimeError"
