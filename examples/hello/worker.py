"""The smallest worker: one handler, no permissions."""

from dataclasses import dataclass

from sandboxrun import worker


@dataclass
class Greeting:
    name: str


@worker.handler
def handle(data: Greeting):
    return {"text": f"Hello, {data.name}!"}


worker.run()
