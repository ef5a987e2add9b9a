# /// script
# requires-python = ">=3.11"
# dependencies = ["psycopg[binary]>=3.2,<4"]
# [tool.sandboxrun]
# lock = "sha256:70f454cad9c91e768621d81bd7934ea8d3802bafb891f4e71a8f3d982ca0308f"
# [tool.sandboxrun.files]
# "arrays.py" = "sha256:492b96d31f3be22c9cdac09d20d588df734df7b904583c8a8094b650f7c3da5b"
# "database.py" = "sha256:eeb7bf1ef410565acc7e9168784b2543a661a32e5103d714930161f3b6d4c906"
# "store.py" = "sha256:89af75b66d65bb476e9fd12787762e2f2cb8da9e4286f3d80238f92250dc85af"
# "spec.json" = "sha256:39239843f0c7d6ffb4f03a5a8997719702ba5763e8dfbb2e84c476b1be1ce785"
# ///
"""Keep tables of PostgreSQL up to date from a stream: each entry is a row, stored once, many in one transaction.

sync.json says which tables follow which stream: docs/postgres.md. An entry is acknowledged after its row is committed.
"""

import sys

import psycopg
from database import Database, parameters
from store import Store

from sandboxrun import worker
from sandboxrun.errors import ConfigError
from sandboxrun.sync import model
from sandboxrun.sync.libpq import Mistake

CONFIG_ERROR = 78
SIZE, SECONDS = 1000, 0.05
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


def tables():
    """Those of sync.json that follow this worker's stream. Raises Mistake, ConfigError."""
    text = worker.config().get("sync", "")
    if not text:
        raise Mistake(
            "the hash has no field sync: expected the text of a sync.json",
            f'sandboxrun set {TYPE} {ID} sync="$(cat sync.json)"',
        )
    found = model.parse(text.encode(), "field sync")
    stream = worker.config().get("requestStream", "")
    mine = [table for table in found.values() if table.stream == stream]
    if not mine:
        names = sorted({table.stream for table in found.values()})
        raise Mistake(
            f"no table of the field sync follows the stream {stream!r}: expected {' or '.join(names[:5])}",
            f"sandboxrun set {TYPE} {ID} requestStream={names[0]} consumerGroup={TYPE} allowRedis={names[0]}",
        )
    return mine


def start():
    """The store, and the size and age of batches. Raises Mistake, ConfigError, MissingSecret."""
    store = Store(Database(parameters(worker.secrets()["postgres"])), tables(), worker.connect)
    size, seconds = number("batchSize", SIZE, 10_000, int), number("batchSeconds", SECONDS, 60, float)
    try:
        store.check("sandboxrun sync plan . | psql  # in the folder of sync.json")
    except worker.Unavailable as error:
        print(f"starting while this is unavailable: {error}", file=sys.stderr)
    except psycopg.Error as error:
        raise Mistake(f"PostgreSQL: {error.diag.message_primary or error}") from None
    return store, size, seconds


def fail(message, hint=""):
    print(f"error: {message}" + (f"\nhint: {hint}" if hint else ""), file=sys.stderr)
    sys.exit(CONFIG_ERROR)


try:
    store, size, seconds = start()
except Mistake as mistake:
    fail(*mistake.args)
except (ConfigError, KeyError) as error:
    fail(str(error), getattr(error, "hint", ""))


@worker.batch(size=size, seconds=seconds)
def write(requests):
    store.write(requests)


worker.run()
