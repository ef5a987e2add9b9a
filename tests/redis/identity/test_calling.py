"""Sandboxed workers that call each other with `allowCall`, on each server: with selectors, and with a login of its own."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hints import is_of, paste
from logins import Server
from runner import Runner
from scripts import script

from sandboxrun import client

SECONDS = 60


def place(server: Server, folder: Path, type_: str, **fields: str) -> None:
    (folder / "worker.py").write_text(script("calling"))
    server.r.hset(f"{type_}:1:h", mapping={"url": str(folder), "version": "local", **fields})


def step(type_: str, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": type_, "data": {"calls": list(calls)}, **more}


@pytest.mark.parametrize("mode", ["serial", "tasks"])
def test_a_worker_calls_what_it_is_granted_and_says_which_grant_is_missing(
    server: Server, run: Runner, tmp_path: Path, mode: str
) -> None:
    place(server, tmp_path, "order", allowCall="price", mode=mode)
    place(server, tmp_path, "price", mode=mode)
    server.r.xgroup_create("bank:req:x", "worker", id="0", mkstream=True)
    many = 1000 if mode == "tasks" else 1  # a thousand at once, each of which is refused a call of its own
    with run.start("price", "1"), contextlib.ExitStack() as stack, client.Client(server.url) as c:
        order = stack.enter_context(run.start("order", "1"))
        reply = c.call("order", {"calls": [step("price", step("bank"), times=many), step("bank")]}, timeout=SECONDS)
        *prices, denied = reply["calls"]
        assert [price["path"] for price in prices] == [["order"]] * many
        assert len({price["ref"][:16] for price in prices}) == 1
        assert {len(price["ref"]) for price in prices} == {40}
        assert {price["calls"][0]["error"] for price in prices} == {"CallDenied"}
        assert (denied["error"], server.r.xlen("bank:req:x")) == ("CallDenied", 0)
        traced = json.loads(run("trace", reply["ref"], "--json").out)
        assert len(traced["calls"]) == min(many, 100)
        assert {(call["type"], call["code"]) for call in traced["calls"]} == {("price", 200)}
        (hint,) = denied["hint"]
        assert is_of("sandboxrun set {} {} && sandboxrun approve {}", hint)
        order.terminate()
        order.communicate(timeout=SECONDS)
        pasted = paste(hint, run.env, run.home)
        assert (pasted.returncode, server.r.hget("order:1:h", "allowCall")) == (0, "price,bank"), pasted
        place(server, tmp_path, "bank", mode=mode)
        with run.start("bank", "1"), run.start("order", "1"):
            reply = c.call("order", {"calls": [step("bank")]}, timeout=SECONDS)
        assert reply["calls"][0]["path"] == ["order"]
