"""Is all in order for workers to run here? Each look gives findings, and one that is not well says what helps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sandboxrun.describe.doctor.finding import Finding, fails
from sandboxrun.describe.doctor.host import folders, kernel, policies, versions
from sandboxrun.describe.doctor.server import leftovers, redis
from sandboxrun.errors import SandboxrunError
from sandboxrun.redis.acl import Owner
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError


def all_findings(
    connect: Callable[[], Connection], known: Iterable[tuple[str, str]], users: Callable[[Owner], list[str]]
) -> Iterator[Finding]:
    """Everything, one after another; what one look cannot finish is a finding of its own."""
    yield from kernel()
    try:
        connection = connect()
        try:
            yield from redis(connection)
            yield from leftovers(connection, known, users)
        finally:
            connection.close()
    except SandboxrunError as error:
        yield fails("redis", str(error), "start it, or name it with --redis URL or REDIS_URL")
    except ReplyError as error:
        yield fails("redis", f"it refuses: {str(error)[:200]}", "ACL SETUSER at Redis")
    yield from folders()
    yield from policies()
    yield from versions()
