# /// script
# requires-python = ">=3.11"
# dependencies = ["psycopg[binary]>=3.2,<4"]
# [tool.sandboxrun]
# lock = "sha256:70f454cad9c91e768621d81bd7934ea8d3802bafb891f4e71a8f3d982ca0308f"
# [tool.sandboxrun.files]
# "named.py" = "sha256:a78efa43c6165eaf7fabfbc79855992dbe5cc26e9531a633b14ac6d00c725600"
# "reader.py" = "sha256:37df228c4710b6e654ae7c9f3e2054c0924aa6a69481b7db9e2348cb9a66d27c"
# "spec.json" = "sha256:9eb9e20d4b0912f15a43c7e33b81b51cf546e48a490a74037da5e4288b906279"
# ///
"""Answer requests by named queries of PostgreSQL, which only read: docs/postgres-query.md.

A request names a query and gives its parameters; no SQL comes from a request.
"""

import sys

import psycopg
from named import parse
from reader import Reader

from sandboxrun import worker
from sandboxrun.errors import ConfigError
from sandboxrun.nearnames import expected, quoted
from sandboxrun.sync.libpq import Mistake, Unresolved, first_line

CONFIG_ERROR = 78
CONNECTIONS, SECONDS = 4, 10.0
TYPE, ID = sys.argv[1].split(":")[:2]


def number(name, default, most, kind):
    """A field of the hash that is a number above 0. Raises Mistake."""
    text = worker.config().get(name, "")
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value <= most:
        raise Mistake(f"the field {name} is {text[:40]!r}: expected a number up to {most}, such as {default}")
    return value


def start():
    """The queries and what runs them. Raises Mistake, ConfigError, KeyError."""
    text = worker.config().get("queries", "")
    if not text:
        raise Mistake(
            "the hash has no field queries: expected the text of a queries.json",
            f'sandboxrun set {TYPE} {ID} queries="$(cat queries.json)"',
        )
    queries = parse(text)
    reader = Reader(worker.secrets()["postgres"], number("querySeconds", SECONDS, 3600, float))
    try:
        warning = reader.check(queries)
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
    except (psycopg.Error, Unresolved) as error:
        text = first_line(error) if isinstance(error, psycopg.Error) else str(error)
        print(f"starting while PostgreSQL is unavailable: {text}", file=sys.stderr)
    return queries, reader, number("connections", CONNECTIONS, 100, int)


def fail(message, hint=""):
    print(f"error: {message}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
    sys.exit(CONFIG_ERROR)


try:
    queries, reader, connections = start()
except Mistake as mistake:
    fail(*mistake.args)
except (ConfigError, KeyError) as error:
    fail(str(error), getattr(error, "hint", ""))


@worker.handler
def query(request):
    data = request.data
    if not isinstance(data, dict):
        raise worker.BadRequest("the request's data is no object")
    name, given = (request.method, data) if request.method else (data.get("query"), data.get("parameters", {}))
    if not isinstance(name, str) or name not in queries:
        raise worker.UnknownMethod(f"there is no query {quoted(str(name))}{expected(str(name), queries)}")
    if not isinstance(given, dict):
        raise worker.BadRequest("parameters: expected an object")
    return reader.run(queries[name], queries[name].values(given), request.remaining())


worker.run(concurrency=connections)
