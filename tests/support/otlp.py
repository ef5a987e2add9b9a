"""A collector of OpenTelemetry on loopback, which checks what it gets by the definitions of the protocol itself."""

from __future__ import annotations

import base64
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Collector:
    """A context manager. `spans`: service and span of each one that was taken, in their order."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[tuple[str, Any]] = []
        self.faults: list[str] = []  # requests that are not what the protocol says
        self.statuses: list[int] = []  # of the next answers, instead of 200
        self.refuses = ""  # a request whose body has this text is answered 400
        self.is_away = False
        self._port = port

    def __enter__(self) -> Collector:
        self.is_away = False
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self._port), _handler(self))
        self._server.daemon_threads = True
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_away = True  # for connections that are open
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def port(self) -> int:
        return self._port

    def take(self, path: str, kind: str, body: bytes) -> tuple[int, bytes]:
        if self.statuses:
            return self.statuses.pop(0), b"{}"
        if self.refuses and self.refuses.encode() in body:
            return 400, b"{}"
        try:
            assert (path, kind) == ("/v1/traces", "application/json")
            spans = list(_parsed(body))
        except (AssertionError, ValueError, json_format.ParseError) as error:
            self.faults.append(repr(error))
            return 400, b"{}"
        self.spans += spans
        return 200, b"{}"


def _parsed(body: bytes) -> Iterator[tuple[str, Any]]:
    """Strictly: a name that the protocol does not know is an error. Its ids are hexadecimal, where JSON of protobuf has base64."""
    found = json.loads(body)
    for resource in found["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in span:
                        span[name] = base64.b64encode(bytes.fromhex(span[name])).decode()
    request = json_format.ParseDict(found, ExportTraceServiceRequest())
    for spans in request.resource_spans:
        (service,) = [a.value.string_value for a in spans.resource.attributes if a.key == "service.name"]
        for part in spans.scope_spans:
            for span in part.spans:
                assert (len(span.trace_id), len(span.span_id), len(span.parent_span_id) in (0, 8)) == (16, 8, True)
                assert span.end_time_unix_nano >= span.start_time_unix_nano > 10**18
                yield service, span


def _handler(collector: Collector) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.is_away:
                self.close_connection = True
                return
            status, answer = collector.take(self.path, self.headers["Content-Type"], body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler
