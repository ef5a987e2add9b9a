"""Services of which some methods are async, and that call each other both ways."""

import asyncio
import threading
import time
from typing import Protocol

from sandboxrun import aconnect, connect, worker

done = []


class Stocks(Protocol):
    def take(self, item: str, seconds: float = 0) -> dict: ...
    async def later(self, item: str, seconds: float = 0) -> dict: ...


@worker.service("stock")
class Stock:
    def take(self, item: str, seconds: float = 0) -> dict:
        time.sleep(seconds)
        done.append(item)
        return {"item": item, "loop": asyncio._get_running_loop() is not None}

    async def later(self, item: str, seconds: float = 0) -> dict:
        await asyncio.sleep(seconds)
        done.append(item)
        return {"item": item, "loop": True}

    def seen(self) -> list:
        return done

    async def fails(self) -> None:
        raise asyncio.CancelledError


@worker.service("order")
class Order:
    async def both(self, item: str) -> list:
        stock = aconnect("stock")
        return await asyncio.gather(stock.take(item=item), stock.later(item=item), aconnect("price").of(item=item))

    async def typed(self, item: str) -> list:
        stock = connect("stock", Stocks)
        return [await stock.later(item), await asyncio.to_thread(stock.take, item)]

    async def blocks(self, item: str) -> dict:
        return connect("stock").take(item=item)

    async def leaves(self, item: str) -> str:
        """Neither the time of a call nor the end of the caller ends the method that was begun."""
        stock = aconnect("stock", timeout=0.05)
        found = []
        for call in (stock.take, stock.later):
            try:
                await call(item=f"{item} {call!r}", seconds=0.2)
            except Exception as error:
                found.append(type(error).__name__)
        call = asyncio.ensure_future(aconnect("stock").later(item=f"{item} cancelled", seconds=0.2))
        await asyncio.sleep(0.05)
        call.cancel()
        return ",".join(found)

    async def fails(self) -> None:
        await aconnect("stock").fails()

    def threads(self) -> int:
        return threading.active_count()


@worker.service("price")
class Price:
    def of(self, item: str) -> dict:
        """A thread that waits for the event loop."""
        return connect("stock").later(item=item)


@worker.service("gate")
class Gate:
    def around(self, item: str) -> list:
        return connect("order").both(item=item)


worker.run()
