"""Whether workers can run here: kernel, Redis, folders, policy, versions, and what killed runs have left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sandboxrun.describe.doctor.finding import Finding, fails
from sandboxrun.describe.doctor.host import folders, kernel, policies, tools, versions
from sandboxrun.describe.doctor.server import leftovers, missing_right_hint, redis
from sandboxrun.errors import SandboxrunError
from sandboxrun.redis.acl import Owner
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError


def all_findings(
    connect: Callable[[], Connection], known: Iterable[tuple[str, str]], users: Callable[[Owner], list[str]]
) -> Iterator[Finding]:
    """All examinations in turn. An error that ends one of them is a finding."""
    yield from kernel()
    try:
        connection = connect()
        try:
            yield from redis(connection)
            yield from leftovers(connection, known, users)
        finally:
            connection.close()
    except SandboxrunError as error:
        yield fails("redis", str(error), hint=error.hint)
    except ReplyError as error:
        yield fails(
            "redis",
            f"it refuses a command of doctor: {str(error)[:200]}",
            hint=missing_right_hint(connection, str(error)),
        )
    yield from folders()
    yield from policies()
    yield from versions()
    yield from tools()
