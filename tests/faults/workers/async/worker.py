import asyncio

from sandboxrun import worker


@worker.handler
async def handle(request):
    if request.data["tell"]:
        print(f"begun {request.ref}", flush=True)
    await asyncio.sleep(request.data["seconds"])
    return {"ref": request.ref}


worker.run(concurrency=4)
