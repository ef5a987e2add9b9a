"""Sends people a mail when an item costs no more than they would pay: once, and again when it is cheaper still."""

from dataclasses import dataclass

from sandboxrun import client, connect, worker


@dataclass
class Wish:
    user: str
    item: str
    cents: int


@worker.handler
def handle(request, wish: Wish):
    try:
        cents = connect("price").quote(item=wish.item)["cents"]
    except client.BadRequest as refusal:
        raise worker.BadRequest(str(refusal)) from None
    told = worker.state(f"told:{wish.user}:h")
    is_news = cents <= wish.cents and cents < int(told.get(wish.item, cents + 1))
    if is_news:
        told[wish.item] = cents
        request.emit("mail", {"to": wish.user, "text": f"{wish.item} costs {cents} cents"})
    return {"cents": cents, "mailed": is_news}


worker.run()
