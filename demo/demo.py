"""The demo: `run` tells the story once, `run --keep` leaves everything running, `clean` ends and removes it."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import sys

import kept
import redis
import story
from story import BIN, STATE, DemoError

from sandboxrun.config.keys import check_type
from sandboxrun.errors import SandboxrunError
from sandboxrun.host.open_redis import check_open_redis
from sandboxrun.log import shown_hint
from sandboxrun.redis import acceptance, embedded
from sandboxrun.redis.store import Store


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    words = " ".join(sys.argv[1:])
    try:
        if words == "clean":
            clean()
        elif words == "hold":
            kept.hold()
        elif words in ("run", "run --keep"):
            run(keep=words.endswith("--keep"))
        else:
            sys.exit(f"error: demo/run.sh does not know {words.removeprefix('run ')!r}\nhint: demo/run.sh --keep")
    except SandboxrunError as error:
        sys.exit("\n".join([f"error: {error}", *([shown_hint(error.hint)] if error.hint else [])]))
    except KeyboardInterrupt:
        sys.exit(130)
    except (redis.ConnectionError, redis.TimeoutError) as error:
        sys.exit(f"error: Redis cannot be reached ({error})\nhint: env -u REDIS_URL demo/run.sh")


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def run(*, keep: bool) -> None:
    check_type(story.TYPE)
    if kept.holder() is not None:
        raise DemoError("an earlier demo is kept running", hint="demo/clean.sh")
    url = os.environ.get("REDIS_URL")
    story.say("Redis", "from REDIS_URL" if url else "embedded, for this demo only")
    if url:
        with _redis(url) as r:
            story.check_ours(r)
        check_open_redis(
            url, story.TYPE, story.ID, say=print
        )  # by the user's policy; the worker has no terminal to ask on
    _make_folders(url)
    with contextlib.ExitStack() as stack:
        if keep:
            url, port = kept.start()
            stack.callback(kept.stop)  # until all is well
        else:
            url = url or stack.enter_context(embedded.server())
            port = stack.enter_context(kept.serve_scripts())
        r = stack.enter_context(_redis(url))
        stack.callback(story.delete_keys, r)
        _tell(story.Story(r, url, port), keep=keep)
        if keep:
            stack.pop_all()
            _say_what_to_type(url)


def _make_folders(url: str | None) -> None:
    """The demo's own, with a policy that accepts the Redis at `url`, as the user's policy does."""
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(mode=0o700)
    os.environ |= {f"XDG_{name}_HOME": str(STATE / name.lower()) for name in ("CONFIG", "CACHE", "STATE", "DATA")}
    if url:
        with contextlib.closing(Store(url)) as store:
            store.connect()
            if store.open_to_all:
                acceptance.record(str(story.POLICY_FILE), store.address.shown)


def _tell(told: story.Story, *, keep: bool) -> None:
    told.make_hash()
    told.refuse_debugger()
    told.answer_once()
    told.add_secret()
    told.refuse_grants()
    if keep:
        told.keep_running(STATE / "worker.log", STATE / "demo.key")
    told.redish(f"{story.TYPE}:*:h")
    told.redish(f"{story.TYPE}:res:x", "-n", "1")


def _say_what_to_type(url: str) -> None:
    sandboxrun, redish = shlex.quote(str(BIN / "sandboxrun")), shlex.quote(str(BIN / "redish"))
    print(
        f"\nRedis and the worker go on running; demo/clean.sh ends them. To type:\n\n"
        f"export REDIS_URL={shlex.quote(url)}\n"
        f"{sandboxrun} call {story.TYPE} name=you\n"
        f"{redish} {story.KEY}\n"
        f"{sandboxrun} stop {story.TYPE} {story.ID}\n\n"
        f"and to start it again:\n\n"
        f"{sandboxrun} {story.TYPE} {story.ID} --policy {shlex.quote(str(story.POLICY_FILE))} < {shlex.quote(str(STATE / 'demo.key'))}"
    )


def _redis(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, decode_responses=True, socket_timeout=20)


def clean() -> None:
    url = kept.url() or os.environ.get("REDIS_URL")
    if url:
        with contextlib.ExitStack() as stack:
            stack.callback(kept.stop)
            r = stack.enter_context(_redis(url))
            story.end_worker(r)
            story.delete_keys(r)
    if os.environ.get("REDIS_URL") not in (None, "", url):
        with _redis(os.environ["REDIS_URL"]) as r:
            story.end_worker(r)
            story.delete_keys(r)


main()
