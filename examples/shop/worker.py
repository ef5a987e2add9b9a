"""A shop of four services: order asks price and stock, and stock charges the account through bank.

One worker may serve all of them, or four workers one each: the field `services` of their hashes decides.
"""

from dataclasses import dataclass

from sandboxrun import client, connect, worker


@dataclass
class Line:
    item: str
    count: int = 1


@worker.service("price")
class Price:
    def __init__(self):
        self.cents = {"tea": 350, "coffee": 420, "mug": 900}

    def quote(self, line: Line) -> int:
        if line.item not in self.cents:
            raise worker.BadRequest(f"there is no {line.item[:40]}")
        return self.cents[line.item] * line.count


@worker.service("bank")
class Bank:
    def __init__(self):
        self.accounts = {"ann": 10_000, "bob": 500}

    def pay(self, account: str, cents: int) -> int:
        left = self.accounts.get(account, 0) - cents
        if left < 0:
            raise worker.BadRequest(f"{account[:40]} has not enough money")
        self.accounts[account] = left
        return left


@worker.service("stock")
class Stock:
    def __init__(self):
        self.items = {"tea": 100, "coffee": 100, "mug": 3}

    def take(self, line: Line, account: str, cents: int) -> dict:
        left = self.items.get(line.item, 0) - line.count
        if line.count < 1:
            raise worker.BadRequest(f"the count is {line.count}: expected at least 1")
        if left < 0:
            raise worker.BadRequest(f"only {self.items.get(line.item, 0)} of {line.item[:40]} left")
        try:
            balance = connect("bank").pay(account=account, cents=cents)
        except client.BadRequest as refusal:
            raise worker.BadRequest(str(refusal)) from None
        self.items[line.item] = left
        return {"left": left, "balance": balance}


@worker.service("order")
class Order:
    def place(self, item: str, account: str, count: int = 1) -> dict:
        line = {"item": item, "count": count}
        try:
            cents = connect("price").quote(line=line)
            return {"cents": cents, **connect("stock").take(line=line, account=account, cents=cents)}
        except client.BadRequest as refusal:
            raise worker.BadRequest(str(refusal)) from None


worker.run()
