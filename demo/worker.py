"""The demo's worker: greets, and on request tries what its hash does not grant."""

import socket
from pathlib import Path

from sandboxrun import worker


@worker.handler
def handle(request):
    data = request.data
    if not isinstance(data, dict):
        raise worker.BadRequest("data must be a JSON object")
    if "connect" in data:
        host, _, port = data["connect"].rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        return {"connected": data["connect"]}
    if "read" in data:
        return {"text": Path(data["read"]).read_text()}
    if "name" not in data:
        raise worker.BadRequest("data has no name")
    greeting = worker.secrets().get("greeting", "Hello")
    return {"text": f"{greeting}, {data['name']}!"}


worker.run()
