"""Send a span for each traced request to an OpenTelemetry collector: OTLP over HTTP, as JSON.

It reads the response streams that `allowRedis` of its hash lists, with a consumer group of its own. An entry is acknowledged
once the collector has taken its span, so nothing is lost, and a span may come twice, with the same ids. A request to this
worker is answered with what was sent so far.

Sources: opentelemetry.io/docs/specs/otlp, and opentelemetry-proto's trace.proto.
"""

import datetime
import http.client
import json
import sys
import threading
import time
import urllib.parse

import redis

from sandboxrun import worker

GROUP = "otel-export"
STREAM_END = ":res:x"
READ_MOST = 512  # entries
READ_BYTES = 8 * 1024 * 1024  # of the entries in one read, roughly
BLOCK_MILLIS = 1000
STALE_MILLIS = 60_000  # entries that another consumer has had for so long are taken from it
SECONDS = 10  # that the collector may take to answer
WAIT_MOST_SECONDS = 30.0  # between two tries
TEXT_MAX_CHARS = 500
REPLY_MAX_BYTES = 64 * 1024  # read of the collector's answer
RETRIED = (429, 502, 503, 504)  # by the specification
REFUSED = (400, 413, 415, 422)  # of the content: a smaller batch may be accepted
SERVER_KIND, ERROR_STATUS = 2, 2  # enums are numbers in OTLP's JSON


class Refused(Exception):
    """The collector does not take these spans."""


class Counts:
    """What this run has done, for whoever asks."""

    def __init__(self):
        self.exported = self.skipped = self.untraced = 0
        self.error = ""  # why it waits, or ""


# --- spans


def span_of(fields):
    """The type, and the span as JSON, of an entry; None if the request was not traced. Raises ValueError if it is malformed."""
    parent = fields.get(b"traceparent", b"")
    if not parent:
        return None
    version, trace, span, _ = (parent.decode("ascii").split("-") + [""] * 4)[:4]
    if len(version) != 2:
        raise ValueError("no traceparent")
    type_, code = text(fields, b"type"), int(fields.get(b"code", b""))
    begin, end = (nanoseconds(fields.get(name, b"")) for name in (b"received", b"completed"))
    made = {
        "traceId": hexadecimal(trace, 32),
        "spanId": hexadecimal(span, 16),
        "name": type_,
        "kind": SERVER_KIND,
        "startTimeUnixNano": str(begin),
        "endTimeUnixNano": str(max(begin, end)),
        "attributes": [
            {"key": "rpc.system", "value": {"stringValue": "sandboxrun"}},
            {"key": "rpc.service", "value": {"stringValue": type_}},
            {"key": "sandboxrun.ref", "value": {"stringValue": text(fields, b"ref")}},
            {"key": "sandboxrun.code", "value": {"intValue": str(code)}},
        ],
    }
    if fields.get(b"method"):
        made["name"] = f"{type_}.{text(fields, b'method')}"
        made["attributes"].append({"key": "rpc.method", "value": {"stringValue": text(fields, b"method")}})
    if not 0 <= code <= 999:
        raise ValueError("no code")
    if fields.get(b"parentSpan"):
        made["parentSpanId"] = hexadecimal(fields[b"parentSpan"].decode("ascii"), 16)
    if fields.get(b"caller"):
        made["attributes"].append({"key": "sandboxrun.caller", "value": {"stringValue": text(fields, b"caller")}})
    if code != 200:
        made["status"] = {"code": ERROR_STATUS, "message": message(fields.get(b"res", b""))}
    return type_, made


def hexadecimal(found, length):
    if len(found) != length or found.strip("0123456789abcdef") or not found.strip("0"):
        raise ValueError(f"{found[:40]!r} is no id")
    return found


def nanoseconds(raw):
    """Of ISO 8601, as a worker writes it."""
    moment = datetime.datetime.fromisoformat(raw.decode("ascii"))
    since = moment.astimezone(datetime.UTC) - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    found = since // datetime.timedelta(microseconds=1) * 1000
    if found < 0:
        raise ValueError("before 1970")
    return found


def text(fields, name):
    found = fields.get(name, b"").decode("utf-8", "replace")[:TEXT_MAX_CHARS]
    if not found:
        raise ValueError(f"no {name.decode()}")
    return found


def message(raw):
    """The error in a reply."""
    try:
        error = json.loads(raw)["err"]["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return error.encode("utf-8", "replace").decode()[:TEXT_MAX_CHARS] if isinstance(error, str) else ""


def request_of(spans):
    """The body of a request of OTLP. A resource for each type, because a type is a service."""
    by_type = {}
    for type_, span in spans:
        by_type.setdefault(type_, []).append(span)
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": type_}}]},
                "scopeSpans": [{"scope": {"name": "sandboxrun"}, "spans": some}],
            }
            for type_, some in by_type.items()
        ]
    }


# --- the collector


class Collector:
    """Takes spans over one connection that is kept open."""

    def __init__(self, endpoint):
        parts = urllib.parse.urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SystemExit(f"error: field otlpEndpoint is {endpoint[:80]!r}: expected http://HOST:PORT")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._path = parts.path.rstrip("/") or "/v1/traces"
        self._connection = kind(parts.hostname, parts.port, timeout=SECONDS)

    def take(self, spans):
        """How many it has rejected. Raises Refused, or OSError if it is to be tried again."""
        body = json.dumps(request_of(spans)).encode()
        try:
            self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            answer = response.read(REPLY_MAX_BYTES)
        except (http.client.HTTPException, OSError) as error:
            self._connection.close()
            raise OSError(f"the collector cannot be reached: {error or type(error).__name__}") from None
        if not response.isclosed():  # more than is read
            self._connection.close()
        if 200 <= response.status < 300:
            return rejected(answer)
        if response.status in REFUSED:
            raise Refused(f"the collector answers {response.status}")
        self._connection.close()
        again = "" if response.status in RETRIED else ", which more tries will hardly change"
        raise OSError(f"the collector answers {response.status}{again}")


def rejected(answer):
    """The number of spans that a collector has taken note of and will never take, from its answer."""
    try:
        return int(json.loads(answer)["partialSuccess"]["rejectedSpans"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0


# --- the streams


class Exporter:
    """Reads, sends and acknowledges, in a thread of its own, until the process ends."""

    def __init__(self, streams, collector, counts):
        self._streams, self._collector, self._counts = streams, collector, counts
        self._consumer = sys.argv[1].split(":")[1]
        self._redis = worker.connect()
        self._last = dict.fromkeys(streams, "0")  # first what was read before and not acknowledged
        self._count = 16
        self._stale = 0.0

    def run(self):
        wait = 0.1
        while True:
            try:
                self._turn()
                wait, self._counts.error = 0.1, ""
            except Exception as error:
                if isinstance(error, redis.ResponseError) and str(error).startswith("NOGROUP"):
                    self._last = dict.fromkeys(self._streams, "0")
                    self._make_groups()
                    continue
                if not self._counts.error:
                    print(f"waiting: {type(error).__name__}: {error}"[:TEXT_MAX_CHARS], file=sys.stderr, flush=True)
                self._counts.error = str(error)[:TEXT_MAX_CHARS]
                self._last = dict.fromkeys(self._streams, "0")  # what was read is sent again
                time.sleep(wait)
                wait = min(wait * 2, WAIT_MOST_SECONDS)

    def _make_groups(self):
        for stream in self._streams:
            try:
                self._redis.xgroup_create(stream, GROUP, "0", mkstream=True)
            except redis.ResponseError as error:
                if not str(error).startswith("BUSYGROUP"):
                    raise

    def _turn(self):
        if time.monotonic() > self._stale:
            self._make_groups()
            for stream in self._streams:
                self._redis.xautoclaim(stream, GROUP, self._consumer, STALE_MILLIS, count=READ_MOST, justid=True)
                self._last[stream] = "0"
            self._stale = time.monotonic() + STALE_MILLIS / 1000
        block = BLOCK_MILLIS if set(self._last.values()) == {">"} else None
        found = self._redis.xreadgroup(GROUP, self._consumer, self._last, count=self._count, block=block)
        for raw, entries in found or ():
            stream = raw.decode()
            if self._last[stream] != ">":
                self._last[stream] = entries[-1][0].decode() if entries else ">"
            self._send(stream, entries)

    def _send(self, stream, entries):
        if not entries:
            return
        sizes = [sum(map(len, (fields or {}).values())) for _, fields in entries]
        self._count = max(1, min(READ_MOST, 2 * self._count, READ_BYTES // max(1, *sizes)))
        spans = []
        for _, fields in entries:
            try:
                found = span_of(fields or {})
            except (ValueError, OverflowError):
                self._counts.skipped += 1
                continue
            if found is None:
                self._counts.untraced += 1
            else:
                spans.append(found)
        self._give(spans)
        self._redis.xack(stream, GROUP, *[xid for xid, _ in entries])

    def _give(self, spans):
        """Have the collector take them. Of a batch that it refuses, single spans are found that it refuses, and skipped."""
        if not spans:
            return
        try:
            lost = self._collector.take(spans)
        except Refused:
            if len(spans) == 1:
                self._check_collector()
                self._counts.skipped += 1
                return
            self._give(spans[: len(spans) // 2])
            self._give(spans[len(spans) // 2 :])
            return
        lost = max(0, min(lost, len(spans)))
        self._counts.skipped += lost
        self._counts.exported += len(spans) - lost

    def _check_collector(self):
        """Raise OSError if it refuses no span, but everything: then it is no collector."""
        try:
            self._collector.take([])
        except Refused as error:
            raise OSError(f"{error} to a request without spans") from None


counts = Counts()
config = worker.config()
streams = [key.strip() for key in config.get("allowRedis", "").split(",") if key.strip().endswith(STREAM_END)]
places = [place.strip() for place in config.get("allowNet", "").split(",") if place.strip()]
if not streams or any(c in stream for stream in streams for c in "*?%"):
    raise SystemExit(
        f"error: allowRedis lists no response stream: expected TYPE{STREAM_END} for each type, without wildcards"
    )
if not config.get("otlpEndpoint") and not places:
    raise SystemExit("error: allowNet lists no collector: expected HOST:PORT, as 127.0.0.1:4318")
collector = Collector(config.get("otlpEndpoint") or f"http://{places[0]}")


@worker.handler
def handle(request):
    return {
        "exported": counts.exported,
        "skipped": counts.skipped,
        "untraced": counts.untraced,
        "waiting": counts.error,
    }


threading.Thread(target=Exporter(streams, collector, counts).run, daemon=True).start()
worker.run()
