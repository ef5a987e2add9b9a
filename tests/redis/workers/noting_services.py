"""A service that notes and sends something with the request of its caller, in the same process."""

from sandboxrun import client, connect, worker


@worker.service("note")
class Note:
    def keep(self, request: worker.Request, text: str, fail: bool = False) -> dict:
        request.emit("mail", {"text": text})
        request.trace(kept=text)
        if fail:
            raise ValueError("no")
        return {
            "data": request.data,
            "method": request.method,
            "path": request.path,
            "left": request.remaining() is not None,
        }


@worker.service("order")
class Order:
    def place(self, text: str, fail: bool = False) -> object:
        try:
            return connect("note").keep(text=text, fail=fail)
        except client.RemoteError as error:
            return str(error)


worker.run()
