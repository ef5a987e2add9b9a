"""A shopping cart for each user: put an item in, take it out, pay."""

from sandboxrun import worker

COUNT_MAX = 10  # of all items in a cart
RECENT = 2
HOUR_SECONDS = 3600

redis = worker.connect()


@worker.service("cart")
class Cart:
    def put(self, user: str, item: str, count: int = 1) -> dict:
        cart = worker.state(f"basket:{user}:h")
        total = sum(map(int, cart.values())) + count
        if total > COUNT_MAX:
            raise worker.BadRequest(f"a cart takes {COUNT_MAX} items, not {total}")
        cart[item] = int(cart.get(item, 0)) + count
        # These may run again together with the handler, so each of them does the same twice as once.
        recent = f"basket:{user}:recent:q"
        redis.lrem(recent, 0, item)
        redis.lpush(recent, item)
        redis.ltrim(recent, 0, RECENT - 1)
        redis.sadd("basket:open:s", user)
        redis.set(f"basket:{user}:last", item, ex=HOUR_SECONDS)
        return {"count": total, "items": contents(cart)}

    def take(self, user: str, item: str) -> dict:
        cart = worker.state(f"basket:{user}:h")
        if item not in cart:
            raise worker.BadRequest(f"the cart has no {item}")
        del cart[item]
        if not cart:
            redis.srem("basket:open:s", user)
        return {"items": contents(cart)}

    def pay(self, user: str) -> dict:
        cart = worker.state(f"basket:{user}:h")
        items = contents(cart)
        if not items:
            raise worker.BadRequest("the cart is empty")
        cart.clear()
        redis.srem("basket:open:s", user)
        redis.delete(f"basket:{user}:last")
        return {"paid": items}


def contents(cart) -> list:
    return [{"item": item, "count": int(count)} for item, count in sorted(cart.items())]


worker.run()
