"""The peers of calls.py: two ASGI apps without a framework. `price` answers; `order` asks it N times, and says how long."""

import asyncio
import http.client
import json
import os
import time

import httpx

BODY = {"item": "tea", "count": 2}
PRICE = os.environ.get("PRICE_PORT", "")


async def body_of(receive):  # type: ignore[no-untyped-def]
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return json.loads(body)


async def respond(send, value) -> None:  # type: ignore[no-untyped-def]
    body = json.dumps(value).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def price(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    if scope["type"] == "http":
        data = await body_of(receive)
        await respond(send, {"item": data["item"], "cents": 350 * data.get("count", 1)})


async def order(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
    if scope["type"] == "http":
        data = await body_of(receive)
        way = (
            with_httpx(data["calls"]) if data["way"] == "httpx" else asyncio.to_thread(with_http_client, data["calls"])
        )
        await respond(send, await way)


async def with_httpx(calls: int) -> list[float]:
    """As most services do it."""
    times = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PRICE}", trust_env=False) as client:
        for _ in range(calls):
            begin = time.perf_counter()
            (await client.post("/of", json=BODY)).json()
            times.append((time.perf_counter() - begin) * 1e6)
    return times


def with_http_client(calls: int) -> list[float]:
    """The least that Python's library needs: one connection that is kept."""
    times = []
    connection = http.client.HTTPConnection("127.0.0.1", int(PRICE))
    for _ in range(calls):
        begin = time.perf_counter()
        connection.request("POST", "/of", json.dumps(BODY), {"content-type": "application/json"})
        json.loads(connection.getresponse().read())
        times.append((time.perf_counter() - begin) * 1e6)
    return times
