"""A client of the Debug Adapter Protocol, such as an editor: JSON with a Content-Length, over a plain socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 30


class Session:
    """One attached session. It keeps messages that come while it waits for another one."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._file, self._number = sock, sock.makefile("rb"), 0
        self._kept: list[dict[str, Any]] = []

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the body of its answer."""
        return self.answer(self.send(command, **arguments))

    def send(self, command: str, **arguments: Any) -> int:
        """Send a request; `answer` takes the number that this returns."""
        self._number += 1
        message = {"seq": self._number, "type": "request", "command": command, "arguments": arguments}
        data = json.dumps(message).encode()
        self._sock.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(data), data))
        return self._number

    def answer(self, number: int) -> dict[str, Any]:
        found = self.raw_answer(number)
        assert found["success"], found
        return found.get("body") or {}

    def raw_answer(self, number: int) -> dict[str, Any]:
        """The whole answer, of a request that may have failed."""
        return self._await(lambda m: m["type"] == "response" and m["request_seq"] == number)

    def event(self, name: str) -> dict[str, Any]:
        """The body of the next event of this name."""
        return self._await(lambda m: m["type"] == "event" and m["event"] == name).get("body") or {}

    def attach(self, script: Path, line: int) -> None:
        """As an editor does, with a breakpoint in this line."""
        self.ask("initialize", adapterID="debugpy", pathFormat="path", linesStartAt1=True)
        attached = self.send("attach", justMyCode=True)
        self.event("initialized")
        found = self.ask("setBreakpoints", source={"path": str(script)}, breakpoints=[{"line": line}])
        assert [b["verified"] for b in found["breakpoints"]] == [True], found
        self.ask("configurationDone")
        self.answer(attached)

    def locals(self) -> tuple[int, int, dict[str, str]]:
        """The thread, the line and the local variables of the next stop."""
        thread = self.event("stopped")["threadId"]
        frame = self.ask("stackTrace", threadId=thread)["stackFrames"][0]
        scope = self.ask("scopes", frameId=frame["id"])["scopes"][0]
        found = self.ask("variables", variablesReference=scope["variablesReference"])["variables"]
        return thread, frame["line"], {variable["name"]: variable["value"] for variable in found}

    def _await(self, wanted) -> dict[str, Any]:  # type: ignore[no-untyped-def]  # a predicate
        for message in self._kept:
            if wanted(message):
                self._kept.remove(message)
                return message
        while True:
            message = self._read()
            if wanted(message):
                return message
            self._kept.append(message)

    def _read(self) -> dict[str, Any]:
        length = 0
        while line := self._file.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert length, "the debugger has hung up"
        found: dict[str, Any] = json.loads(self._file.read(length))
        return found


@contextmanager
def session(host: str, port: int) -> Iterator[Session]:
    with socket.create_connection((host, port), timeout=SECONDS) as sock:
        yield Session(sock)
