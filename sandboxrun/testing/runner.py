"""The tests of one spec, one after another, against one worker."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sandboxrun import moment
from sandboxrun.config import keys
from sandboxrun.errors import SandboxrunError, SpecError
from sandboxrun.protocol.request import encode, entry, iso
from sandboxrun.redis.connection import Connection
from sandboxrun.redis.replies import ReplyError
from sandboxrun.spec import compare, match, schemas
from sandboxrun.spec.match import shown
from sandboxrun.spec.model import ENVELOPE, OK, Case, Expected, Spec
from sandboxrun.spec.state import Actual, Stored
from sandboxrun.testing import mocks
from sandboxrun.testing.generate import AGAIN
from sandboxrun.testing.http import PLACEHOLDER, Server
from sandboxrun.testing.keyspace import Glance, Keyspace
from sandboxrun.testing.subject import ID, Subject

WAIT_SECONDS = 0.1  # how soon the end of a worker is noticed
OUTPUT_SECONDS = 0.05  # in which the worker's last lines arrive
BAD_REQUEST = 400
LINES_SHOWN = 12
STOPPED = "the tests were stopped"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a request came to. `reply`: with its code and without ref, source and time; None if none came.
    `changed`: the keys that the request has changed, None for one that it has removed."""

    reply: dict[str, Any] | None
    changed: Mapping[str, Actual | None]


@dataclass(slots=True)
class Outcome:
    """Of one test. `faults`: what was not as expected, a line each. `lines`: what the worker printed meanwhile."""

    case: Case
    faults: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    seconds: float = 0.0
    seen: Seen | None = None
    updated: bool = False  # the test expects now what was seen

    @property
    def passed(self) -> bool:
        return not self.faults or self.updated


@dataclass(slots=True)
class Run:
    """Of all tests of one spec. `error`: why there are no outcomes, or no more of them. `code`: an exit code for it."""

    spec: Spec
    outcomes: list[Outcome] = field(default_factory=list)
    seconds: float = 0.0
    start_seconds: float = 0.0
    error: str = ""
    lines: list[str] = field(default_factory=list)
    code: int = 1
    http: Server | None = None  # closed by now; its origin stands in what was seen

    @property
    def passed(self) -> bool:
        return not self.error and all(outcome.passed for outcome in self.outcomes)


def run(
    spec: Spec,
    cases: Iterable[Case],
    given: Mapping[str, Spec],
    *,
    url: str,
    options: tuple[str, ...] = (),
    done: Callable[[Outcome], object] = lambda outcome: None,
    stop: threading.Event | None = None,
) -> Run:
    """Start the worker on this Redis, and run the tests. Raises nothing that a spec or a worker causes.

    `given`: specs by type, for services that it calls. `options`: of sandboxrun TYPE ID. `done` is called after each test.
    `stop`: ends the run early, in a moment.
    """
    began, found = time.perf_counter(), Run(spec)
    try:
        with _opened(url) as connection, tempfile.TemporaryDirectory(prefix="sandboxrun-test-") as folder:
            types = _called(spec)
            known = mocks.find(spec, given, types)
            with contextlib.ExitStack() as stack:
                http = None
                if any(case.http for case in spec.cases) or PLACEHOLDER in str(spec.fields):
                    http = found.http = stack.enter_context(contextlib.closing(Server()))
                subject = Subject(spec, connection, url, folder, options, stop or threading.Event(), http)
                answers = stack.enter_context(mocks.Mocks(url, known, types))
                bench = stack.enter_context(contextlib.closing(_Bench(subject, connection, answers, http)))
                chosen = list(cases)
                if chosen and not bench.start(found, chosen[0]):
                    return found
                failed: set[str] = set()
                for case in chosen:
                    if case.name.startswith(AGAIN) and case.name.removeprefix(AGAIN) in failed:
                        continue
                    if subject.stopped.is_set():
                        raise SpecError(STOPPED)
                    outcome = bench.run(case)
                    found.outcomes.append(outcome)
                    failed |= set() if outcome.passed else {case.name}
                    done(outcome)
    except SandboxrunError as error:
        found.error, found.code = str(error), error.exit_code
    except ReplyError as error:
        found.error = f"Redis refuses a command: {str(error)[:200]}"
    finally:
        found.seconds = time.perf_counter() - began
    return found


def _called(spec: Spec) -> list[str]:
    """The types that the worker may send requests to."""
    return [name.strip() for name in spec.grants.get("allowCall", "").split(",") if name.strip()]


@contextlib.contextmanager
def _opened(url: str) -> Iterator[Connection]:
    connection = Connection(url, name="sandboxrun-test", protocol=2)
    connection.open()
    connection.set_wait(WAIT_SECONDS)
    try:
        yield connection
    finally:
        connection.close()


class _Bench:
    """A worker that is tested, and all around it."""

    def __init__(self, subject: Subject, connection: Connection, answers: mocks.Mocks, http: Server | None) -> None:
        self._subject, self._connection, self._answers, self._http = subject, connection, answers, http
        self._spec = subject.spec
        self._keys = Keyspace(connection, self._spec.type, ID, self._spec.ignore)
        self._is_fresh = False  # no request has been sent since the start
        self._lives = False
        self._fixed: Sequence[str] = ()  # options that hold its clock and its random numbers

    def close(self) -> None:
        self._subject.stop()

    def start(self, found: Run, case: Case) -> bool:
        """Start it for the first time, as `case` needs it; `found` says why that failed."""
        began = time.perf_counter()
        self._fixed = _fixed(case)
        if not self._restart():
            code = self._subject.code
            found.error = "the worker does not start" + (f": it ended with {_ended(code)}" if code is not None else "")
            found.code = code if code is not None and 64 <= code <= 78 else 1
            found.lines = self._subject.take_lines()
            why = next((line for line in found.lines if line.startswith("error: ")), "")
            found.error += f": {why.removeprefix('error: ')}" if why else ""
        found.start_seconds = time.perf_counter() - began
        return not found.error

    def _restart(self) -> bool:
        self._subject.stop(kill=not self._lives)
        self._keys.reset()
        self._lives = self._is_fresh = self._subject.start(*self._fixed)
        return self._lives

    def run(self, case: Case) -> Outcome:
        outcome = Outcome(case)
        if self._http is not None:
            case = _placed(case, self._http.origin)
            self._http.expect(case.http)
        began = time.perf_counter()
        try:
            if self._must_restart(case) and not self._restart():
                outcome.faults.append("the worker does not start again")
            else:
                self._run(case, outcome)
        except SpecError as error:
            outcome.faults.append(str(error))
        finally:
            self._keys.remove(self._keys.look())
        if case.inside is not None and _code(outcome) == BAD_REQUEST:
            self._look_inside(case, outcome)
        outcome.seconds = time.perf_counter() - began
        if self._http is not None:
            unasked = self._http.take_faults()
            outcome.faults += unasked if case.expected is Expected.WRITTEN else []
            outcome.faults = [fault.replace(self._http.origin, PLACEHOLDER) for fault in outcome.faults]
        outcome.faults = [self._subject.hidden(fault) for fault in outcome.faults]
        if outcome.faults:
            time.sleep(OUTPUT_SECONDS)
        outcome.lines = self._subject.take_lines()
        return outcome

    def _must_restart(self, case: Case) -> bool:
        before, self._fixed = self._fixed, _fixed(case)
        return not self._lives or (case.fresh and not self._is_fresh) or self._fixed != before

    def _look_inside(self, case: Case, outcome: Outcome) -> None:
        """Add a fault if the worker refuses only the bound itself: a refusal for another reason is no fault."""
        inner = self.run(replace(case, request=case.inside, inside=None))
        if _code(inner) == OK and outcome.seen is not None and outcome.seen.reply is not None:
            err = outcome.seen.reply.get("err")
            message = shown(err.get("message")) if isinstance(err, dict) else "400"
            outcome.faults.append(
                f"reply.code: expected 200 at the bound of the schema, got 400: {message}; "
                f"{shown(case.inside)} is answered 200"
            )

    def _run(self, case: Case, outcome: Outcome) -> None:
        self._keys.check(case.before, "before")
        self._keys.check(case.after, "after")
        self._keys.write(case.before)
        before = self._keys.look()
        began = time.monotonic()
        self._is_fresh = False
        reply = self._ask(case, outcome)
        after = self._keys.look()
        taken = time.monotonic() - began
        changed = self._keys.changed(before, after)
        named = {key.encode() for key in case.after}
        actual = self._keys.read(sorted(changed | named))
        outcome.seen = Seen(reply, {text_of(name): actual.get(name) for name in changed})
        if reply is not None:
            outcome.faults += self._reply_faults(case, reply)
        unknown = self._answers.take_unknown()
        if case.expected is Expected.WRITTEN:
            outcome.faults += [*_state_faults(case, before, changed, actual, taken), *unknown]
        elif unknown and reply is not None:  # the callee's own tests do not know such a request
            outcome.faults.clear()

    def _ask(self, case: Case, outcome: Outcome) -> dict[str, Any] | None:
        """Send the request; the reply, or None after a fault."""
        connection, type_ = self._connection, self._spec.type
        ref = f"test-{os.urandom(12).hex()}"
        at = moment.seconds(case.clock or "")
        at = time.time() if at is None else at  # by the worker's clock, as its deadline is
        words = entry(ref, type_, encode(case.request), iso(round(at * 1000)), at + case.timeout, method=case.method)
        connection.call("XADD", keys.request_stream(type_), "*", *words)
        until = time.monotonic() + case.timeout
        while time.monotonic() < until:
            found = connection.call("BLPOP", keys.reply_key(ref), WAIT_SECONDS)
            if found is not None:
                connection.call("DEL", keys.trace_key(ref))
                reply = json.loads(found[1])
                return {name: value for name, value in reply.items() if name not in ENVELOPE}
            self._check_stop()
            if self._subject.code is not None:
                self._lives = False
                outcome.faults.append(f"the worker ended with {_ended(self._subject.code)}")
                return None
        self._lives = False
        self._subject.stop(kill=True)
        outcome.faults.append(f"no reply within {case.timeout:g} s: the worker was killed")
        return None

    def _check_stop(self) -> None:
        """Raise SpecError if the run is to end."""
        if self._subject.stopped.is_set():
            self._lives = False
            self._subject.stop(kill=True)  # it may never finish the request
            raise SpecError(STOPPED)

    def _reply_faults(self, case: Case, reply: Mapping[str, Any]) -> Iterator[str]:
        code = reply.get("code")
        if code != case.code and not (case.expected is Expected.ACCEPTED and code == BAD_REQUEST):
            err = reply.get("err")
            message = f": {shown(err.get('message'))}" if isinstance(err, dict) else ""
            yield f"reply.code: expected {case.code}, got {shown(code)}{message}"
            if code != OK and case.code == OK:
                return
        yield from match.differences(dict(case.reply), dict(reply), "reply", is_open=True)
        if code == OK:
            body = {name: value for name, value in reply.items() if name != "code"}
            for fault in schemas.faults(self._spec.interfaces[case.method].reply, body, self._spec.defs):
                yield f"reply{fault} (by the schema of replies)"


def _fixed(case: Case) -> Sequence[str]:
    """Options of sandboxrun TYPE ID."""
    clock = (f"--clock={case.clock}",) if case.clock is not None else ()
    return (*clock, *((f"--seed={case.seed}",) if case.seed is not None else ()))


def _code(outcome: Outcome) -> Any:
    """Of the reply, if one came."""
    return outcome.seen.reply.get("code") if outcome.seen is not None and outcome.seen.reply is not None else None


def _state_faults(
    case: Case, before: Mapping[bytes, Glance], changed: set[bytes], actual: Mapping[bytes, Actual], taken: float
) -> Iterator[str]:
    for key, expected in case.after.items():
        yield from compare.differences(key, expected, actual.get(key.encode()), taken)
    for name in sorted(changed - {key.encode() for key in case.after}):
        key, now_ = text_of(name), actual.get(name)
        if now_ is None:
            yield f"{key}: was removed by the request, and is not in after"
        else:
            word = "changed" if name in before else "made"
            yield f"{key}: was {word} by the request, and is not in after: {shown(compare.as_json(key, now_))}"


def _placed(case: Case, origin: str) -> Case:
    """The test with the server's address for PLACEHOLDER."""

    def placed(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(PLACEHOLDER, origin)
        if isinstance(value, list):
            return [placed(item) for item in value]
        if isinstance(value, Mapping):
            return {placed(name): placed(item) for name, item in value.items()}
        return replace(value, value=placed(value.value)) if isinstance(value, Stored) else value

    return replace(
        case,
        before=placed(case.before),
        request=placed(case.request),
        reply=placed(case.reply),
        after=placed(case.after),
    )


def text_of(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _ended(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
