"""The life of a worker that is being developed: started, started again on save, kept while what was saved is no Python.

No request is lost by a restart: the worker that ends finishes what it has begun, for 3 s at most, and hands back the rest;
requests that come meanwhile wait in the stream.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sandboxrun.dev import source
from sandboxrun.dev.packages import PackageUpdater
from sandboxrun.dev.process import Process, unblock
from sandboxrun.dev.target import Target, read
from sandboxrun.dev.tests import BackgroundTests
from sandboxrun.dev.watch import changes
from sandboxrun.errors import ConfigError, ConnectionLost, SandboxrunError, StoreError, UsageError
from sandboxrun.log import escape, shown_hint
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError

STOP_SECONDS = 8.0  # sandboxrun kills its worker after 5
READY_SECONDS = 2.0  # after its start, for a worker that may not be made with the SDK
POLL_SECONDS = 0.002
SAVED_SECONDS = 5.0  # a file's time that is older was not set by this save


@dataclass(frozen=True, slots=True)
class Setting:
    """What a session is made from. `say` is given (kind, text) from any thread; kinds are "", "worker", the levels of a
    message, "good", "bad" and "dev". `denied` is given the fields of each denial, from any thread. `tests`: None if none are to
    run. `is_recorded`: whether a file that was saved is as dev itself has written it."""

    target: Target
    options: Sequence[str]  # of sandboxrun TYPE ID
    env: Mapping[str, str]
    key_file: str | None
    say: Callable[[str, str], None]
    denied: Callable[[Mapping[str, object]], None]
    tests: BackgroundTests | None = None
    is_recorded: Callable[[str], bool] = lambda path: False


@dataclass(slots=True)
class Session:
    """`run` in a thread of its own; `end` from any."""

    setting: Setting
    connection: Connection
    settled: threading.Event = field(default_factory=threading.Event)  # the first worker is ready, or cannot be
    over: threading.Event = field(default_factory=threading.Event)
    error: SandboxrunError | None = None
    _events: queue.SimpleQueue[set[str] | Process | None] = field(default_factory=queue.SimpleQueue)
    _stop: threading.Event = field(default_factory=threading.Event)
    _fresh: threading.Event = field(default_factory=threading.Event)  # something more important than a report
    _armed: threading.Event = field(default_factory=threading.Event)
    _current: Process | None = None
    _standby: Process | None = None
    _leaving: list[Process] = field(default_factory=list)
    _broken: dict[str, str] = field(default_factory=dict)
    _packages: PackageUpdater = field(init=False)
    _warned: set[str] = field(default_factory=set)
    _changing: bool = False  # one worker ends and the next begins

    def __post_init__(self) -> None:
        self._packages = PackageUpdater(self.setting.target, self.setting.options, self.setting.say)

    @property
    def runs(self) -> bool:
        """Whether there is a worker, or will be in a moment. From any thread."""
        process = self._current
        return self._changing or (process is not None and process.code is None)

    def run(self) -> None:
        """Until `end`; `error` is set where it could not go on."""
        watcher = threading.Thread(target=self._watch, daemon=True)
        try:
            watcher.start()
            self._armed.wait()
            if self.error is None:
                self._change({self.setting.target.main}, first=True)
                self.settled.set()
                self._loop()
        except SandboxrunError as error:
            self.error = error
        finally:
            self._stop.set()
            self._close()
            watcher.join()
            self.over.set()
            self.settled.set()

    def end(self) -> None:
        self._put(None)

    def _put(self, event: set[str] | None) -> None:
        self._events.put(event)
        self._fresh.set()

    def _watch(self) -> None:
        try:
            say = self.setting.say
            for paths in changes(
                self.setting.target, stop=self._stop, armed=self._armed.set, warn=lambda text: say("warning", text)
            ):
                self._put(paths)
        except SandboxrunError as error:
            self.error = error
            self._put(None)
        except (OSError, RuntimeError) as error:
            self.error = UsageError(f"{self.setting.target.folder} cannot be watched: {error}")
            self._put(None)
        finally:
            self._armed.set()

    def _loop(self) -> None:
        while (event := self._events.get()) is not None:
            if isinstance(event, Process):
                self._ended(event)
            else:
                self._fresh.clear()
                event = {path for path in event if not self._packages.is_own(path)}
                changed = {path for path in event if not self.setting.is_recorded(path)}
                if changed:
                    self._change(changed)
                elif event and self.setting.tests is not None:
                    self.setting.tests.start()

    def _ended(self, process: Process) -> None:
        if process is self._standby:  # it could not even wait; the next start says why
            self._standby = None
        elif process is self._current:
            self._current = None
            code = process.code or 0
            if code == UsageError.exit_code:
                self.error = UsageError("these options do not start a worker, as the error above says")
                self.end()
                return
            why = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.setting.say("bad", f"the worker ended with {why}; it is started again when a file is saved")

    # --- a change

    def _change(self, paths: set[str], *, first: bool = False) -> None:
        """Start the worker again, unless what was saved is no Python."""
        saved = _saved(paths)
        target, say = self.setting.target, self.setting.say
        self._broken = source.problems({*paths, *self._broken}, target.folder)
        if self._broken:
            self._keep(*self._broken.values())
            return
        try:
            self.connection.check()
        except ConnectionLost:  # a server may close one that is idle
            self.connection.open()
        try:
            fence = self._fence()
        except ConfigError as error:
            say("bad", _shown(error))
            return
        try:
            self._packages.update(self.connection)
        except StoreError:
            raise
        except SandboxrunError as error:
            self._keep(_shown(error))
            return
        before = self.connection.call("HKEYS", fence)
        tests = self.setting.tests
        if tests is not None:
            tests.cancel()
        self._changing = True
        try:
            if self._current is not None:
                current, self._current = self._current, None
                self._retire(current)
            process = self._current = self._standby or self._make(standby=False)
        finally:
            self._changing = False
        self._standby = None
        process.go()
        self._report(process, fence, before, saved, first=first)
        if not any(option.startswith("--audit") for option in self.setting.options):  # each start is recorded there
            self._standby = self._make(standby=True)
        if tests is not None:
            tests.start()

    def _keep(self, *faults: str) -> None:
        """Start nothing, and say why."""
        kept = "the worker that runs is kept" if self._current is not None else "the worker starts once that is fixed"
        for text in (*faults, kept):
            self.setting.say("bad", text)

    def _say_of_worker(self, kind: str, text: str) -> None:
        """A list or lock that is not current is said once: it is written again when all is done."""
        if kind == "warning" and "\nhint: sandboxrun lock " in text:
            hint = text.rpartition("\n")[2]
            if hint in self._warned:
                return
            self._warned.add(hint)
        self.setting.say(kind, text)

    def _fence(self) -> str:
        loop = read(self.connection, self.setting.target.type, self.setting.target.id).loop
        return loop.fence_key(loop.consumer_id)

    def _make(self, *, standby: bool) -> Process:
        target = self.setting.target
        return Process(
            [target.type, target.id, *self.setting.options],
            env=self.setting.env,
            key_file=self.setting.key_file,
            standby=standby,
            said=self._say_of_worker,
            denied=self.setting.denied,
            ended=self._events.put,
        )

    def _report(self, process: Process, fence: str, before: object, saved: float, *, first: bool) -> None:
        """Wait until the worker takes requests, and say how long that took since the file was saved."""
        word = "started" if first else "restarted"
        while process.code is None:
            if process.started.is_set():
                if self.connection.call("HKEYS", fence) not in ([], before):
                    millis = (time.time() - saved) * 1000
                    self.setting.say("good", word if first else f"{word} in {millis:.0f} ms")
                    return
                if time.time() - process.started_at > READY_SECONDS or self._fresh.is_set():
                    millis = (process.started_at - saved) * 1000
                    began = word if first else f"{word} in {millis:.0f} ms"
                    self.setting.say("good", f"{began}; it does not take requests by sandboxrun.worker yet")
                    return
            time.sleep(POLL_SECONDS)

    def _retire(self, process: Process) -> None:
        """End the worker without losing a request, and without waiting for its read to run out. Its supervisor may still
        tidy up when this returns, but has given back the hash."""
        self._leaving = [other for other in self._leaving if other.code is None] + [process]
        process.stop()
        until = time.monotonic() + STOP_SECONDS
        while process.code is None and time.monotonic() < until:
            self._unblock()
            if process.started.is_set() and not self.connection.call("HEXISTS", self.setting.target.key, "pid"):
                return
            process.join(POLL_SECONDS)
        if process.code is None:
            process.stop(kill=True)
            process.join(STOP_SECONDS)

    def _bury(self, process: Process) -> None:
        process.join(STOP_SECONDS)
        if process.code is None:
            process.stop(kill=True)
            process.join(STOP_SECONDS)

    def _unblock(self) -> None:
        """A worker that waits for requests notices SIGTERM when its read returns: let it return now."""
        with contextlib.suppress(ReplyError):  # a login that may not: then it takes up to a second
            unblock(self.connection, self.setting.target.type, self.setting.target.id)

    def _close(self) -> None:
        if self.setting.tests is not None:
            self.setting.tests.close()
        if self._standby is not None:
            self._standby.abandon()
            self._standby.join(STOP_SECONDS)
        if self._current is not None:
            with contextlib.suppress(SandboxrunError):  # Redis is away
                self._retire(self._current)
        for process in self._leaving:
            self._bury(process)


def _shown(error: SandboxrunError) -> str:
    return "\n".join(filter(None, (escape(str(error)), shown_hint(error.hint))))


def _saved(paths: set[str]) -> float:
    """When the newest of these was saved: its own time, where that can be."""
    now = time.time()
    times = []
    for path in paths:
        with contextlib.suppress(OSError):
            times.append(os.stat(path).st_mtime)
    newest = max(times, default=now)
    return newest if now - SAVED_SECONDS < newest <= now else now
