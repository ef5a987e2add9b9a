"""A handler whose requests and replies a spec.json describes. The field `way` of the hash says how it runs."""

from sandboxrun import worker

way = worker.config()["way"]


def answer(request):
    print("handled", request.data["n"])
    return {"total": request.data.get("answer", request.data["n"]), "at": None}


if way == "async":

    @worker.handler
    async def handle(request):
        state = await worker.state("kept:h")
        state["n"] = request.data["n"]
        return answer(request)

elif way == "typed":

    @worker.handler
    def handle(request, data: dict[str, int]):
        return {"total": data["n"]}

else:

    @worker.handler
    def handle(request):
        worker.state("kept:h")["n"] = request.data["n"]
        return answer(request)


worker.run(concurrency=2 if way == "threads" else None)
