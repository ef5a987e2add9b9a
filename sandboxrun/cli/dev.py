"""sandboxrun dev."""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sandboxrun.cli.call import parse_data
from sandboxrun.cli.parser import Parser, captured, connect_option, names
from sandboxrun.errors import SandboxrunError, UsageError
from sandboxrun.log import escape
from sandboxrun.protocol.call import CallError

if TYPE_CHECKING:
    from sandboxrun.dev.learn import Learned
    from sandboxrun.dev.session import Session
    from sandboxrun.dev.target import Target
    from sandboxrun.redis.connection import Connection

_EPILOG = """\
examples:
  sandboxrun init greeter && sandboxrun dev greeter   a worker in a folder, with a Redis of its own
  sandboxrun dev greeter --inspect                    attach an editor to 127.0.0.1:9229
  sandboxrun dev greeter --learn                      collect refusals, and print the grants that it needs
  sandboxrun dev greeter 1 --redis redis://127.0.0.1  an existing hash with version local

At the prompt, type a request as JSON or KEY=VALUE …; exit or Ctrl-D ends dev. dev also takes the options of
sandboxrun TYPE ID, with "=" before a value, as in --allow-net=….
"""
_COLOURS = {"good": "32", "bad": "31", "error": "31", "warning": "33", "denied": "33", "dev": "2"}
CALL_SECONDS = 30.0
LAST_REPLY_SECONDS = 0.5  # for the reply of a worker that ended after it
EXITS = ("exit", "quit")
_OWN_OPTIONS = {"--standby", "--json-logs", "--help", "-h", "--version"}  # that a run gets from here, or not at all
STARTED_AGAIN = "it is started again when a file is saved"
LOOK_SECONDS = 0.1  # how soon the end of a worker is noticed while a reply is awaited
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
    from sandboxrun.redis.connection import Connection

    words = options.target
    found = Target.of_path(words[0]) if len(words) == 1 else None
    terminal = _Terminal(f"{found.type if found is not None else words[0]}> ")
    learned = Learned()
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(_redis(options.redis, terminal))
        # By the older protocol whatever the URL says: a session reads replies in its shapes.
        connection = stack.enter_context(contextlib.closing(Connection(url, name="sandboxrun dev", protocol=2)))
        connection.open()
        target = found or Target.of_hash(connection, *words)
        _check_redis(url, target, rest, terminal)
        stack.enter_context(OwnKeys(connection, target))
        setting = Setting(
            target,
            rest,
            {**os.environ, "REDIS_URL": url},
            options.key_file,
            lambda kind, text: _said(kind, text, terminal, learned),
            learned.event,
        )
        session = Session(setting, connection)
        thread = threading.Thread(target=session.run, daemon=True)
        thread.start()
        try:
            _serve(session, terminal, url, seconds=DEBUGGED_SECONDS if _debugs(rest) else CALL_SECONDS)
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


def _check_redis(url: str, target: Target, rest: list[str], terminal: _Terminal) -> None:
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
def _redis(url: str | None, terminal: _Terminal) -> Iterator[str]:
    """The one that is given, else one of our own."""
    url = url or os.environ.get("REDIS_URL")
    if url:
        yield url
        return
    from sandboxrun.redis import embedded

    with embedded.server() as made:
        terminal.print("dev", f"Redis for this session; in other terminals: export REDIS_URL={made}")
        yield made


def _serve(session: Session, terminal: _Terminal, url: str, *, seconds: float) -> None:
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
        elif line and not _call(session, terminal, url, line, seconds):
            return


def _wake(session: Session) -> None:
    """Whoever waits at the prompt is told of the end by the signal that a Ctrl-C is."""
    session.over.wait()
    os.kill(os.getpid(), signal.SIGINT)


def _call(session: Session, terminal: _Terminal, url: str, line: str, seconds: float) -> bool:
    """Send a request and wait for its reply; whether the session goes on.

    The wait ends early if the worker ends. The reply is printed whenever it comes, because the next start of the worker
    handles the request.
    """
    try:
        data = parse_data([line] if line[0] in '{["' else shlex.split(line))
    except (SandboxrunError, ValueError) as error:
        terminal.print("bad", escape(str(error)))
        return True
    type_ = session.setting.target.type
    read, write = os.pipe()

    def answer() -> None:
        try:
            _ask(terminal, url, type_, data, seconds)
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


def _ask(terminal: _Terminal, url: str, type_: str, data: Any, seconds: float) -> None:
    """Send a request; print the reply, or why none came."""
    from sandboxrun.client import Client

    began = time.perf_counter()
    try:
        with Client(url) as client:
            reply = client.call(type_, data, timeout=seconds)
    except CallError as error:
        if error.reply is None:
            terminal.print("bad", escape(str(error)))
            return
        reply = error.reply
    except (SandboxrunError, ValueError) as error:
        terminal.print("bad", escape(str(error)))
        return
    millis = (time.perf_counter() - began) * 1000
    code = reply.get("code")
    body = {name: value for name, value in reply.items() if name not in ("ref", "source", "code", "time")}
    text = json.dumps(body, indent=2, ensure_ascii=False)
    # A reply must not drive the terminal.
    text = text if text.replace("\n", "").isprintable() else json.dumps(body, indent=2)
    terminal.print("good" if code == 200 else "bad", f"{code} in {millis:.1f} ms", text)


def _said(kind: str, text: str, terminal: _Terminal, learned: Learned) -> None:
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


class _Terminal:
    """Lines of several threads, above a prompt that stays the last line."""

    def __init__(self, prompt: str) -> None:
        self.prompts = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
        self.left = False  # the end was typed while a reply was awaited
        capable = os.environ.get("TERM", "dumb") != "dumb"
        self._colours = sys.stdout.isatty() and capable and not os.environ.get("NO_COLOR")
        self._clear = "\r\x1b[K" if capable else "\r"
        self._prompt, self._asking = prompt, False
        self._lock = threading.Lock()
        self._ahead: collections.deque[str] = collections.deque()  # typed while a reply was awaited
        self._part = b""

    def print(self, kind: str, text: str, *further: str) -> None:
        """`further`: lines below, without the colour of `kind`."""
        if kind in _COLOURS and self._colours:
            text = f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m"
        text = "\n".join((text, *further))
        with self._lock, contextlib.suppress(OSError, ValueError):
            if self._asking:
                import readline

                sys.stdout.write(f"{self._clear}{text}\n{self._prompt}{readline.get_line_buffer()}")
            else:
                sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def ask(self) -> str | None:
        """A line, or None at the end of the input."""
        import readline  # with which input() edits and remembers lines

        if self._ahead:
            line = self._ahead.popleft()
            self.print("", f"{self._prompt}{line}")
            return line
        begun, self._part = self._part.decode("utf-8", "replace"), b""
        readline.set_startup_hook(lambda: readline.insert_text(begun))
        with self._lock:
            self._asking = True
        try:
            return input(self._prompt).strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print()
            raise
        finally:
            with self._lock:
                self._asking = False

    def heard(self, done: int) -> bool:
        """Wait a moment for the end of the pipe `done` or for lines that are typed; whether there is nothing more to wait
        for: the pipe has ended, or the end was typed. Other lines are kept for `ask`."""
        fd = sys.stdin.fileno()
        ready = select.select([done, fd], [], [], LOOK_SECONDS)[0]
        if fd in ready and done not in ready:
            data = os.read(fd, 4096)
            # What was typed at the prompt beyond its line has the \r of a terminal that readline has set.
            *lines, self._part = (self._part + data).replace(b"\r", b"\n").split(b"\n")
            self._ahead.extend(line.decode("utf-8", "replace").strip() for line in lines)
            # Ctrl-D on an empty line gives nothing to read, tcgetattr(3).
            self.left = not data or any(line in EXITS for line in self._ahead)
        return self.left or done in ready
