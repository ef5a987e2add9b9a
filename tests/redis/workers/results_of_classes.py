"""Returns a model of pydantic, or a dataclass."""

import dataclasses
import datetime

import pydantic

from sandboxrun import worker


class Model(pydantic.BaseModel):
    at: datetime.date
    inner: list[int]


@dataclasses.dataclass
class Plain:
    n: int


@worker.handler
def handle(request):
    return Model(at="2026-01-02", inner=[1]) if request.data else Plain(3)


worker.run()
