"""Two services, one of which calls the other: in this process, or over Redis if the hash names one of them."""

import json
import sys

from sandboxrun import aconnect, client, connect, worker


def outcome(call):
    try:
        return {"value": call()}
    except client.CallError as error:
        return {"kind": type(error).__name__, "text": str(error), "sent": error.reply is not None}


@worker.service("price")
class Price:
    def of(self, item: str, answer: int | str | None = None):
        print("of", item)
        return {"cents": 250} if answer is None else {"cents": answer}

    async def later(self, item: str):
        return {"cents": item}

    def hidden(self):
        return {}


@worker.service("shop")
class Shop:
    def ask(self, method: str, data: dict, spec: str = ""):
        return outcome(lambda: getattr(connect("price", spec=spec or None), method)(**data))

    async def aask(self, method: str, data: dict, spec: str = ""):
        try:
            return {"value": await getattr(aconnect("price", spec=spec or None), method)(**data)}
        except client.CallError as error:
            return {"kind": type(error).__name__, "text": str(error), "sent": error.reply is not None}


if "modules" in worker.config():
    print(json.dumps(sorted(sys.modules)))
worker.run()
