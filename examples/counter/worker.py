"""Counts the pages that people read: in all, by day, and who has read most.

spec.json bounds the requests, which are checked by it before they come here.
"""

from dataclasses import dataclass
from datetime import date

from sandboxrun import worker

WEEK_SECONDS = 7 * 86_400

redis = worker.connect()


@dataclass
class Reading:
    user: str
    day: date
    pages: int = 1


@worker.handler
def handle(reading: Reading):
    person, day = f"count:{reading.user}:h", f"count:day:{reading.day}"
    with redis.pipeline() as commands:
        commands.hincrby(person, "pages", reading.pages)
        commands.hset(person, "last", str(reading.day))
        commands.incrby(day, reading.pages)
        commands.expire(day, WEEK_SECONDS)
        commands.zincrby("count:top:z", reading.pages, reading.user)
        commands.xadd("count:log:x", {"user": reading.user, "pages": reading.pages})
        commands.zrange("count:top:z", 0, 2, desc=True, withscores=True)
        total, _, today, _, _, _, top = commands.execute()
    return {
        "total": total,
        "today": today,
        "top": [{"user": user.decode(), "pages": int(pages)} for user, pages in top],
    }


worker.run()
