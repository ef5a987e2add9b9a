"""Mistakes that a type checker finds before a worker runs. A comment names the error that mypy has for the line."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sandboxrun import aconnect, client, connect, worker


@dataclass
class Order:
    item: str


@worker.handler  # type-var
def no_parameter() -> dict[str, str]:
    return {}


@worker.handler("t")  # type-var
def no_parameter_of_a_type() -> None: ...


@worker.handler(5)  # call-overload,untyped-decorator
def no_type(request: worker.Request) -> None: ...


@worker.handler(timeout="5")  # call-overload,untyped-decorator
def timeout_as_text(request: worker.Request) -> None: ...


@worker.handler(retries=3)  # call-overload,untyped-decorator
def unknown_option(request: worker.Request) -> None: ...


@worker.handler
def wrong_field(request: worker.Request[Order]) -> str:
    request.reply("x")  # attr-defined
    return request.data.itme  # attr-defined,no-any-return


@worker.encoder  # type-var
def encoder_of_two(value: object, other: object) -> str:
    return ""


wrong_field(Order("tea"))  # arg-type
worker.run(concurrency="many")  # arg-type
worker.run(key="user")  # arg-type
worker.run(threads=4)  # call-arg
worker.config()["version"] = 1  # assignment
worker.start()  # attr-defined


class Price:
    def of(self, item: str) -> int:
        return len(item)


worker.service(Price)  # arg-type
connect("price", Price).off("tea")  # attr-defined
connect("price", Price).of(5)  # arg-type
connect("price", Price).of(itm="tea")  # call-arg
connect(Price)  # call-overload
connect("price", timeout="5")  # call-overload
aconnect("price", Price)  # call-arg,arg-type

client.call({"n": 1})  # call-arg,arg-type
client.call("t", datetime.now())  # arg-type
client.call("t", {1, 2})  # arg-type
client.call("t", Order("tea"))  # arg-type
client.call("t", {}, timeout="5")  # arg-type
client.call("t", {}, 5)  # call-arg
text: str = client.call("t", {})  # assignment
client.Client(port=6379)  # call-arg
for reply in client.Client().call_many("t", [{}]):
    print(reply["n"])  # call-overload
with client.AsyncClient():  # attr-defined,attr-defined
    pass


async def forgotten_await() -> None:
    async with client.AsyncClient() as calling:
        print(calling.call("t", {})["n"])  # index
