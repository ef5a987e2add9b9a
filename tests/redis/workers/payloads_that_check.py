"""A payload whose classes check themselves."""

import dataclasses

import pydantic

from sandboxrun import worker


class Model(pydantic.BaseModel):
    size: int = pydantic.Field(gt=0)


@dataclasses.dataclass
class Box:
    model: Model
    colour: str = "red"

    def __post_init__(self):
        if self.colour != "red":
            raise ValueError("only red ones are left")


@worker.handler
def handle(request, box: Box):
    return {"size": box.model.size}


worker.run()
