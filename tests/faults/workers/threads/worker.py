import time

from sandboxrun import worker


@worker.handler
def handle(request):
    if request.data["tell"]:
        print(f"begun {request.ref}", flush=True)
    time.sleep(request.data["seconds"])
    return {"ref": request.ref}


worker.run(concurrency=4)
