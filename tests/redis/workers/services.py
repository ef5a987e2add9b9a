"""Four services that call each other, and do all that can go wrong. One worker serves them all, or four serve one each."""

import asyncio
import datetime
import decimal
import math
import time
from dataclasses import dataclass

from sandboxrun import client, connect, worker


@dataclass
class Line:
    item: str
    count: int = 1


def outcome(call):
    """What a call gave or raised, as a caller sees it."""
    try:
        return {"value": call()}
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        code = (getattr(error, "reply", None) or {}).get("code")
        return {"kinds": names, "text": str(error), "may_have_run": getattr(error, "may_have_run", None), "code": code}


def named(service, method, timeout=10.0):
    """The method by its name, which may be dotted."""
    found = connect(service, timeout=timeout)
    for part in method.split("."):
        found = getattr(found, part)
    return found


class Relays:
    """What each of the four can do; a base in the same file, so its methods are theirs."""

    def relay(self, service: str, method: str, data: dict, timeout: float = 10.0) -> dict:
        return outcome(lambda: named(service, method, timeout)(**data))

    def through(self, service: str, method: str, data: dict):
        return named(service, method)(**data)

    def ask(self, service: str, method: str, given: str) -> dict:
        """With an argument that is no JSON, or too much of it."""
        value = {
            "set": {1}, "date": datetime.date(2026, 1, 2), "nan": math.nan, "deep": nested(5000), "keys": {1: 2, None: 3},
            "large": "x" * (1 << 20), "odd": {(1, 2): 3}, "surrogate": "\ud800", "big": 10**5000, "fits": "x" * 1_048_000,
        }[given]  # fmt: skip
        found = outcome(lambda: getattr(connect(service), method)(value=value))
        return {**found, "value": len(str(found.get("value")))}

    def answer(self, result: str):
        """Something that is JSON, or is not."""
        circle = []
        circle.append(circle)
        return {
            "none": None, "empty": {}, "result": {"result": 1}, "envelope": {"time": 1, "ref": 2, "code": 404, "source": 3},
            "date": {"at": datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)}, "decimal": decimal.Decimal("1.10"),
            "class": [Line("tea", 2)], "set": {"a"}, "bytes": b"\x00\xff", "keys": {1: {None: True}}, "nan": {"n": math.nan},
            "object": {"deep": [object()]}, "circle": circle, "large": "x" * (9 << 20), "twice": {1: 1, "1": 2},
            "surrogate": "\ud800", "big": 1 << 200, "float": 0.1 + 0.2, "integral": 1e300,
            "error": {"err": {"message": "no"}, "code": 500},
        }[result]  # fmt: skip

    def echo(self, value=None):
        return value

    def fail(self, how: str) -> None:
        if how == "exit":
            raise SystemExit(3)
        if how == "interrupt":
            raise KeyboardInterrupt
        raise {
            "value": ValueError("no \x1b[31m" + "x" * 3000), "bad": worker.BadRequest("I refuse"), "empty": RuntimeError(),
            "timeout": TimeoutError("late"), "call": client.BadRequest("by hand"), "key": KeyError("k"),
            "recursion": RecursionError("deep"), "cancelled": asyncio.CancelledError(),
        }[how]  # fmt: skip

    def sleep(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds

    def line(self, line: Line, *, note: str = "none", factor: float = 1) -> list:
        return [line.item, line.count, note, factor]

    def _hidden(self) -> str:
        return "called"

    @property
    def hidden(self) -> str:
        return "called"


def nested(depth):
    made = []
    for _ in range(depth):
        made = [made]
    return made


@worker.service("price")
class Price(Relays):
    def of(self, item: str, count: int = 1) -> int:
        if item == "nothing":
            raise worker.BadRequest("there is no nothing")
        return 100 * count


@worker.service("bank")
class Bank(Relays):
    def __init__(self):
        self.accounts = {"ann": 100_000, "bob": 500}

    def pay(self, account: str, cents: int) -> int:
        left = self.accounts.get(account, 0) - cents
        if left < 0:
            raise worker.BadRequest(f"{account} has {cents + left} of {cents}")
        self.accounts[account] = left
        return left


@worker.service("stock")
class Stock(Relays):
    def __init__(self):
        self.items = {"tea": 100, "mug": 5}

    def take(self, line: Line, account: str, cents: int) -> dict:
        left = self.items[line.item] - line.count
        if left < 0:
            raise worker.BadRequest(f"{self.items[line.item]} {line.item} are left")
        paid = connect("bank").pay(account=account, cents=cents)
        self.items[line.item] = left
        return {"left": left, "account": paid}


@worker.service("order")
class Order(Relays):
    def place(self, item: str, account: str, count: int = 1) -> dict:
        cents = connect("price").of(item=item, count=count)
        return {
            "cents": cents,
            **connect("stock").take(line={"item": item, "count": count}, account=account, cents=cents),
        }

    def round(self, depth: int) -> dict:
        """A circle, found by whoever would close it."""
        return outcome(lambda: connect("price").through(service="stock", method="through", data={
            "service": "bank", "method": "relay", "data": {"service": ("order", "price", "stock", "bank")[depth % 4], "method": "echo",
            "data": {}}}))  # fmt: skip


worker.run()
