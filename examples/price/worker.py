"""What things cost: a service that others call."""

from sandboxrun import worker


@worker.service("price")
class Price:
    def __init__(self):
        self.cents = {"tea": 350, "coffee": 420, "mug": 900}

    def quote(self, item: str) -> dict:
        if item not in self.cents:
            raise worker.BadRequest(f"there is no {item[:40]}")
        return {"cents": self.cents[item]}


worker.run()
