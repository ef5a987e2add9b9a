"""The worker of calls.py: a service that calls another one N times, and says how long each call took, in µs."""

import time

from sandboxrun import connect, worker


@worker.service("price")
class Price:
    def of(self, item: str, count: int = 1) -> dict:
        return {"item": item, "cents": 350 * count}


@worker.service("order")
class Order:
    def measure(self, calls: int) -> list:
        price, times = connect("price"), []
        for _ in range(calls):
            begin = time.perf_counter()
            price.of(item="tea", count=2)
            times.append(time.perf_counter() - begin)
        return [seconds * 1e6 for seconds in times]


worker.run()
