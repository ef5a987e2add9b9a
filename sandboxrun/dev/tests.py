"""The tests of the developed folder's spec.json, in the background: after each restart, and what has changed is said.

They run in a process of their own, `sandboxrun test --json`: with its own Redis, at a lower priority, and without imports
here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sandboxrun.lifeline import end_with_parent
from sandboxrun.log import escape

NAME = "spec.json"
CHANGES_SHOWN = 5
SHOWN_MAX_CHARS = 400
STOP_SECONDS = 10.0  # in which the tests end a worker
NICE = 5


@dataclass(frozen=True, slots=True)
class Results:
    """Of one run. `faults`: by the name of a test, the first thing that was not as expected; "" for one that has passed.
    `error`: why there are none, or no more of them."""

    faults: Mapping[str, str]
    error: str = ""

    @property
    def summary(self) -> str:
        failed = sum(map(bool, self.faults.values()))
        passed = f"{len(self.faults) - failed} pass"
        return f"{passed}, {failed} fail{'s' * (failed == 1)}" if failed else passed


def news(before: Results | None, now: Results) -> Iterator[tuple[str, str]]:
    """Kind and text of each line about what has changed; `before`: None at the first run."""
    if now.error:
        is_new = before is None or before.error != now.error
        yield ("bad" if is_new else "dev"), f"tests: {now.error}"
        return
    is_first = before is None or bool(before.error)
    changed = list(_changed(before.faults if before is not None else {}, now))
    yield from changed[:CHANGES_SHOWN]
    if len(changed) > CHANGES_SHOWN:
        yield "bad", f"tests: and {len(changed) - CHANGES_SHOWN} more have changed"
    if is_first or len(changed) != 1:
        kind = "bad" if any(now.faults.values()) else "good"
        yield kind if is_first or changed else "dev", f"tests: {now.summary}"


def _changed(before: Mapping[str, str], now: Results) -> Iterator[tuple[str, str]]:
    for name, fault in now.faults.items():
        if fault and not before.get(name):
            word = "fails now" if name in before else "fails"
            yield "bad", f"tests: `{escape(name)}` {word}: {fault}"
        elif not fault and before.get(name):
            yield "good", f"tests: `{escape(name)}` passes again"


@dataclass(slots=True)
class BackgroundTests:
    """Used from the session's thread. `say` is given (kind, text) from any."""

    folder: str
    options: Sequence[str]  # of sandboxrun TYPE ID
    say: Callable[[str, str], None]
    _last: Results | None = None
    _current: _Running | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    def cancel(self) -> None:
        """End a run that is not done, without a word."""
        with self._lock:
            running, self._current = self._current, None
        if running is not None:
            running.stop()

    def start(self) -> None:
        """Run the tests, if there are any."""
        self.cancel()
        if not os.path.isfile(os.path.join(self.folder, NAME)):
            self._last = None
            return
        running = self._current = _Running()
        # The process ends with this thread, which therefore waits for it.
        thread = threading.Thread(target=self._run, args=(running,), daemon=True)
        self._threads = [each for each in self._threads if each.is_alive()] + [thread]
        thread.start()

    def close(self) -> None:
        self.cancel()
        for thread in self._threads:
            thread.join(STOP_SECONDS)

    def _run(self, running: _Running) -> None:
        policies = [option for option in self.options if option.startswith("--policy=")]
        results = running.results(["test", ".", "--json", *policies], self.folder)
        with self._lock:
            if self._current is not running:  # cancelled
                return
            self._current = None
            for kind, text in news(self._last, results):
                self.say(kind, text)
            # The tests that a broken spec.json has hidden are compared with those that ran last.
            before = self._last.faults if self._last is not None else {}
            self._last = Results({**before}, results.error) if results.error else results


class _Running:
    """One `sandboxrun test`, which `stop` ends from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.terminate()

    def results(self, words: Sequence[str], folder: str) -> Results:
        with self._lock:
            if self._is_stopped:
                return Results({})
            process = self._process = subprocess.Popen(
                [sys.executable, "-I", "-m", "sandboxrun", *words],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,  # what is typed at the terminal ends us, and we end it
                preexec_fn=_in_background,
            )
        out, err = process.communicate()
        return parse(process.returncode, out, err, folder)


def parse(code: int, out: bytes, err: bytes, folder: str) -> Results:
    """What `sandboxrun test --json` printed for the folder."""
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
        [run] = json.loads(out)
        faults = {test["name"]: "" if test["passed"] else _fault(test) for test in run["tests"]}
        return Results(faults, _bounded(run["error"]) if run["error"] else "")
    lines = [line for line in err.decode("utf-8", "replace").splitlines() if line]
    message = next((line for line in lines if line.startswith("error: ")), lines[-1] if lines else f"exit code {code}")
    text = message.removeprefix("error: ").removeprefix("./").removeprefix(f"{escape(folder)}/")
    return Results({}, _bounded(text))


def _fault(test: Mapping[str, Any]) -> str:
    first, *more = test["faults"]
    return _bounded(first) + (f" (and {len(more)} more)" if more else "")


def _bounded(text: str) -> str:
    shown = escape(text)
    return shown if len(shown) <= SHOWN_MAX_CHARS else f"{shown[:SHOWN_MAX_CHARS]}…"


def _in_background() -> None:
    os.nice(NICE)
    end_with_parent()
