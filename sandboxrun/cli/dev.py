"""sandboxrun dev."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import select
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sandboxrun.cli.call import parse_data
from sandboxrun.cli.parser import Parser, captured, connect_option, names
from sandboxrun.cli.prompt import EXITS, Terminal
from sandboxrun.errors import SandboxrunError, UsageError
from sandboxrun.log import escape
from sandboxrun.protocol.call import CallError

if TYPE_CHECKING:
    from sandboxrun.dev.learn import Learned
    from sandboxrun.dev.session import Session
    from sandboxrun.dev.target import Target
    from sandboxrun.redis.connection import Connection
    from sandboxrun.testing.recording import Recorder

_EPILOG = """\
examples:
  sandboxrun init greeter && sandboxrun dev greeter   a worker in a folder, with a Redis of its own
  sandboxrun dev greeter --inspect                    attach an editor to 127.0.0.1:9229
  sandboxrun dev greeter --learn                      collect refusals, and print the grants that it needs
  sandboxrun dev greeter --record                     add each request that you type to the tests in spec.json
  sandboxrun dev greeter 1 --redis redis://127.0.0.1  an existing hash with version local

At the prompt, type a request as JSON or KEY=VALUE …; exit or Ctrl-D ends dev. dev also takes the options of
sandboxrun TYPE ID, with "=" before a value, as in --allow-net=….
"""
CALL_SECONDS = 30.0
LAST_REPLY_SECONDS = 0.5  # for the reply of a worker that ended after it
_OWN_OPTIONS = {"--standby", "--json-logs", "--help", "-h", "--version"}  # that a run gets from here, or not at all
STARTED_AGAIN = "it is started again when a file is saved"
DEBUGGED_SECONDS = 3600.0


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun dev",
        usage="sandboxrun dev [options] FOLDER|FILE|TYPE ID",
        description="Run a worker while you write it, and restart it when a file is saved, without losing a request.",
        epilog=_EPILOG,
    )
    parser.add_argument("target", metavar="FOLDER|FILE|TYPE ID", nargs="+")
    connect_option(parser, default="a Redis of its own")
    parser.add_argument(
        "--learn", action="store_true", help="at the end, print the smallest grants for what was refused"
    )
    parser.add_argument("--key-file", metavar="FILE", help="the key of the worker's secrets, one line worker-v0 HEX")
    parser.add_argument(
        "--record", action="store_true", help="add each request that is typed to the tests in spec.json"
    )
    parser.add_argument("--no-tests", action="store_true", help="do not run the tests of spec.json on each save")
    options, rest = parser.parse_known_args(args)
    _check_passed_on(parser, args, rest)
    if len(options.target) > 2:
        raise UsageError(
            f"{len(options.target)} words are given: expected FOLDER, FILE or TYPE ID", hint="sandboxrun dev --help"
        )
    if options.key_file is not None and not os.path.isfile(options.key_file):
        raise UsageError(
            f"--key-file {options.key_file[:200]} is not a file", hint=_key_hint(options.target, options.key_file)
        )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return _develop(options, rest)
    except KeyboardInterrupt:
        return 0


def _check_passed_on(parser: Parser, args: list[str], rest: list[str]) -> None:
    """Raise UsageError if one of `rest`, which are passed on to each run, is no option of a run."""
    from sandboxrun.cli import mistakes, run

    known = captured(run.main)._option_string_actions
    for word in rest:
        name, equals, _ = word.partition("=")
        if name not in known or name in _OWN_OPTIONS:
            for each in known.keys() - parser._option_string_actions.keys() - _OWN_OPTIONS:
                parser.add_argument(each, action="store_true")  # so that it can be the one that was meant
            raise mistakes.too_much(parser, args, [word])
        if not equals and known[name].nargs is None and not name.startswith("--inspect"):
            at = args.index(word)
            values = args[at + 1 : at + 2]
            value = values[0] if values and not values[0].startswith("-") else known[name].metavar
            meant = [*args[:at], f"{name}={value}", *args[at + 2 :]]
            raise UsageError(f"{name} needs its value behind a =", hint=mistakes.again_hint(parser, meant))


def _key_hint(words: list[str], file: str) -> str:
    """Makes a key, and a secret in the hash. The hash of a folder has none."""
    if len(words) != 2:
        return ""
    return (
        f'echo \'{{"NAME":"VALUE"}}\' | sandboxrun encrypt {shlex.join(words)} --key-file {shlex.quote(file)} --write'
    )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _develop(options: argparse.Namespace, rest: list[str]) -> int:
    from sandboxrun.dev.learn import Learned
    from sandboxrun.dev.session import Session, Setting
    from sandboxrun.dev.target import OwnKeys, Target
    from sandboxrun.dev.tests import BackgroundTests
    from sandboxrun.redis.connection import Connection

    words = options.target
    found = Target.of_path(words[0]) if len(words) == 1 else None
    terminal = Terminal(f"{found.type if found is not None else words[0]}> ")
    learned = Learned()

    def say(kind: str, text: str) -> None:
        _said(kind, text, terminal, learned)

    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_redis(options.redis, terminal))
        # By the older protocol whatever the URL says: a session reads replies in its shapes.
        connection = stack.enter_context(contextlib.closing(Connection(url, name="sandboxrun dev", protocol=2)))
        connection.open()
        target = found or Target.of_hash(connection, *words)
        _check_redis(url, target, rest, terminal)
        stack.enter_context(OwnKeys(connection, target))
        recorder = _recorder(target, url, rest, say) if options.record else None
        setting = Setting(
            target,
            rest,
            {**os.environ, "REDIS_URL": url},
            options.key_file,
            say,
            learned.event,
            None if options.no_tests or target.script is not None else BackgroundTests(target.folder, rest, say),
            recorder.is_recorded if recorder is not None else lambda path: False,
        )
        session = Session(setting, connection)
        thread = threading.Thread(target=session.run, daemon=True)
        thread.start()
        try:
            seconds = DEBUGGED_SECONDS if _debugs(rest) else CALL_SECONDS
            _serve(session, terminal, functools.partial(_ask, terminal, url, target.type, seconds, recorder))
        except KeyboardInterrupt:
            pass
        finally:
            _calmly(session, thread)
        if options.learn and session.error is None:
            command = ["sandboxrun", *(["dev"] if target.made else []), *words, *rest]
            _show_learned(learned, connection, target, shlex.join(command))
    if session.error is not None:
        raise session.error
    return 0


def _recorder(target: Target, url: str, rest: list[str], say: Callable[[str, str], None]) -> Recorder:
    """Raises UsageError."""
    if target.script is not None:
        raise UsageError(f"--record writes spec.json into a folder, and {target.url} is a file")
    from sandboxrun.testing.recording import Recorder

    return Recorder(target, url, rest, say)


def _check_redis(url: str, target: Target, rest: list[str], terminal: Terminal) -> None:
    """The worker has no terminal to ask on: ask here. Raises SandboxError."""
    from sandboxrun.host.open_redis import check_open_redis
    from sandboxrun.redis.users import REDIS_ACL, REDIS_PASSWORD

    given = {word.partition("=")[0]: word.partition("=")[2] for word in rest}
    if not {REDIS_ACL, REDIS_PASSWORD} & {*names(given.get("--allow-degraded", ""))}:
        policy = given.get("--policy")
        check_open_redis(url, target.type, target.id, policy=policy, say=lambda text: terminal.print("dev", text))


def _debugs(rest: list[str]) -> bool:
    return any(word.startswith("--inspect") for word in rest)


def _calmly(session: Session, thread: threading.Thread) -> None:
    """End the worker; a second Ctrl-C changes nothing, for what was made must be removed."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    session.end()
    thread.join()


@contextlib.contextmanager
def _redis(url: str | None, terminal: Terminal) -> Iterator[str]:
    """The one that is given, else one of our own."""
    url = url or os.environ.get("REDIS_URL")
    if url:
        yield url
        return
    from sandboxrun.redis import embedded

    with embedded.server() as made:
        terminal.print("dev", f"Redis for this session; in other terminals: export REDIS_URL={made}")
        yield made


def _serve(session: Session, terminal: Terminal, ask: Callable[[Any], None]) -> None:
    """Requests that are typed, until the end is; without a terminal, until a signal."""
    session.settled.wait()
    if session.over.is_set():
        return
    target = session.setting.target
    terminal.print("dev", f"{target.key} is {escape(target.url)}; {STARTED_AGAIN}")
    if not terminal.prompts:
        session.over.wait()
        return
    terminal.print("dev", "a request is JSON or KEY=VALUE …; exit or Ctrl-D ends")
    threading.Thread(target=_wake, args=(session,), daemon=True).start()
    while (line := terminal.ask()) is not None and not session.over.is_set():
        if line in EXITS:
            return
        if line and not session.runs:
            terminal.print("bad", f"no worker runs, so nothing was sent; {STARTED_AGAIN}")
        elif line and not _call(session, terminal, ask, line):
            return


def _wake(session: Session) -> None:
    """Whoever waits at the prompt is told of the end by the signal that a Ctrl-C is."""
    session.over.wait()
    os.kill(os.getpid(), signal.SIGINT)


def _call(session: Session, terminal: Terminal, ask: Callable[[Any], None], line: str) -> bool:
    """Send a request and wait for its reply; whether the session goes on.

    The wait ends early if the worker ends. The reply is printed whenever it comes, because the next start of the worker
    handles the request.
    """
    try:
        data = parse_data([line] if line[0] in '{["' else shlex.split(line))
    except (SandboxrunError, ValueError) as error:
        terminal.print("bad", escape(str(error)))
        return True
    read, write = os.pipe()

    def answer() -> None:
        try:
            ask(data)
        finally:
            os.close(write)

    threading.Thread(target=answer, daemon=True).start()
    try:
        while not terminal.heard(read):
            if not session.runs:
                if not select.select([read], [], [], LAST_REPLY_SECONDS)[0]:
                    terminal.print("bad", f"the request waits for the next start of the worker; {STARTED_AGAIN}")
                break
    finally:
        os.close(read)
    return not terminal.left


def _ask(terminal: Terminal, url: str, type_: str, seconds: float, recorder: Recorder | None, data: Any) -> None:
    """Send a request, and record it."""
    recording = recorder.begin(data) if recorder is not None else None
    reply = None
    try:
        reply = _reply(terminal, url, type_, data, seconds)
    finally:
        if recorder is not None and recording is not None:
            recorder.end(recording, reply)


def _reply(terminal: Terminal, url: str, type_: str, data: Any, seconds: float) -> dict[str, Any] | None:
    """The reply, which is printed, or why none came."""
    from sandboxrun.client import Client

    began = time.perf_counter()
    try:
        with Client(url) as client:
            reply = client.call(type_, data, timeout=seconds)
    except CallError as error:
        if error.reply is None:
            terminal.print("bad", escape(str(error)))
            return None
        reply = error.reply
    except (SandboxrunError, ValueError) as error:
        terminal.print("bad", escape(str(error)))
        return None
    millis = (time.perf_counter() - began) * 1000
    code = reply.get("code")
    body = {name: value for name, value in reply.items() if name not in ("ref", "source", "code", "time")}
    text = json.dumps(body, indent=2, ensure_ascii=False)
    # A reply must not drive the terminal.
    text = text if text.replace("\n", "").isprintable() else json.dumps(body, indent=2)
    terminal.print("good" if code == 200 else "bad", f"{code} in {millis:.1f} ms", text)
    return reply


def _said(kind: str, text: str, terminal: Terminal, learned: Learned) -> None:
    if kind == "worker":
        learned.line(text)
    if kind != "info" and kind != "debug":
        terminal.print(kind, f"{kind}: {text}" if kind in ("warning", "error") else text)


def _show_learned(learned: Learned, connection: Connection, target: Target, command: str) -> None:
    from sandboxrun.dev import learn
    from sandboxrun.redis.hashes import read

    stored = read(connection, target.type, target.id).own.fields
    grants = learned.grants()
    if learned.without_grant:
        print(f"learned: {learned.without_grant} times it was refused what no grant allows; the lines above say what")
    if not grants:
        print("learned: no refusal named a grant; one that the worker handled itself names none")
        return
    # What was made for a folder is gone: whoever keeps a hash for it most likely calls it so.
    fields = {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in stored.items()}
    id_, url = ("1", fields.get("url")) if target.made else (target.id, None)
    print("learned: what it tried and was refused; read it, then paste what it is to have")
    print(escape("  " + learn.as_set(target.type, id_, grants, fields, url=url)))
    print(escape(f"  {command} {learn.as_flags(grants)}"))
