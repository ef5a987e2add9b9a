"""The hash of a worker that another host claims to run."""

from __future__ import annotations

from typing import Any

import redis


def lease(r: redis.Redis, *, age: int = 0, **more: Any) -> dict[str, Any]:
    """The fields of such a worker, whose host renewed the lease `age` seconds ago."""
    now = int(r.time()[0])
    fields = {"pid": "7", "pidHost": "elsewhere/1", "pidStarted": "1", "pidSeen": now - age, "pidSince": now - 7200}
    return {**fields, "pidName": "far", "pidVersion": "v1", **more}
