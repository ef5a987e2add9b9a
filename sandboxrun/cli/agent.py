"""sandboxrun agent."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.config import keys
from sandboxrun.errors import ConfigError, ConnectionLost, NotConfigured, UsageError
from sandboxrun.log import Log
from sandboxrun.records import replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from sandboxrun.host.agent import Agent
    from sandboxrun.host.agentfile import AgentOptions
    from sandboxrun.host.folders import Folders
    from sandboxrun.host.page import Address, Routes, Server
    from sandboxrun.sandbox.supervisor.zygote import Zygote

HANGING_SECONDS = 30.0  # without a turn of its loop the agent is no healthy service
METRICS_SECONDS = 15.0
STATUS_SECONDS = 0.5  # a status is made at most so often for `sandboxrun health`
_EPILOG = """\
examples:
  sandboxrun agent greeter                             in another terminal: sandboxrun scale greeter 3
  sandboxrun agent greeter resizer --most 50
  sandboxrun agent greeter --page 127.0.0.1:9300       shows its workers at http://127.0.0.1:9300/
  sandboxrun agent                                     the types of agent.toml, which lies beside policy.toml
  sandboxrun agent greeter --key-file greeter=greeter.key

The agent runs the ids that wait in TYPE:start:q, on as many hosts as it is started on, and starts workers again that end. It
needs no root, and a Redis login that may make users. What it prints is of all its workers; sandboxrun logs TYPE ID shows
what one has printed.

exit codes:
  0 it has drained: after SIGTERM, SIGINT or sandboxrun drain   64 the command line is wrong
  71 this host lacks what the sandbox needs   75 Redis refuses   78 a file, an option or a key is wrong

signals: at SIGTERM or SIGINT it hands its ids back, for other agents, ends its workers and then itself; a second one kills them
"""


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)

    from sandboxrun.host.folders import Folders
    from sandboxrun.host.queuedlog import QueuedLog

    folders = Folders.of_user()
    agent_options = _options(options, folders)
    servers = _servers(agent_options)
    log = Log(json=options.json_logs, debug=options.debug)
    _check_redis(agent_options, log)
    _check_types(agent_options, log, parser, args, named=bool(options.types))
    queued = QueuedLog(json=options.json_logs, debug=options.debug)
    try:
        return _serve(agent_options, folders, _Listening(servers, parser, args), queued)
    finally:
        queued.flush()


def _serve(options: AgentOptions, folders: Folders, listening: _Listening, log: Log) -> int:
    """Run the agent; its exit code."""
    from sandboxrun.host.agent import Agent
    from sandboxrun.host.notify import Notifier

    notifier = Notifier()  # before any child has its variables
    zygote = _zygote(options, folders, log)
    agent = Agent(options, folders, log, zygote=zygote, tell=notifier.ready)
    with contextlib.ExitStack() as stack:
        if zygote is not None:
            stack.callback(zygote.close)
        _show(agent, options, folders, log, listening, stack)
        notifier.start_watchdog(lambda: time.monotonic() - agent.turned < HANGING_SECONDS)
        types = ", ".join(options.types)
        log.info("agent", f"serving {types} as {agent.name}, at most {options.most} workers")
        code = agent.run()
        notifier.stopping()
    return code


def _zygote(options: AgentOptions, folders: Folders, log: Log) -> Zygote | None:
    """If the policy lets the workers of a type share memory."""
    from sandboxrun.config.worker import parse_worker

    for type_ in options.types:
        any_worker = parse_worker(type_, "1", {}, {b"url": b"/", b"version": b"local"})
        if not folders.ceiling(any_worker, options.policy).shares_memory:
            continue
        from sandboxrun.sandbox.supervisor.zygote import Zygote

        try:
            return Zygote()
        except OSError as error:
            log.warning("zygote", f"no worker shares memory, because no process could be started: {error.strerror}")
            return None
    return None


def _servers(options: AgentOptions) -> list[tuple[Address, bool]]:
    """Where it listens, and whether the page is shown there, not only the metrics. Raises UsageError."""
    given = (("--page", options.page), ("--metrics", options.metrics))
    if not any(text for _, text in given):
        return []
    from sandboxrun.host.page import parse_address

    types = " ".join(options.types)
    return [
        (parse_address(text, option, types, loopback=option == "--page"), option == "--page")
        for option, text in given
        if text
    ]


def _show(
    agent: Agent,
    options: AgentOptions,
    folders: Folders,
    log: Log,
    listening: _Listening,
    stack: contextlib.ExitStack,
) -> None:
    """What others see of the agent: a socket, the page and the metrics, until the end of the stack. Raises ConfigError."""
    from sandboxrun.fleet.status import as_json
    from sandboxrun.host.statuses import Cached, StatusSocket

    try:
        status = Cached(lambda: as_json(agent.status()), STATUS_SECONDS)
        stack.callback(StatusSocket(folders.agents, status).close)
    except OSError as error:
        log.warning("status", f"sandboxrun health cannot see this agent: {folders.agents}: {error.strerror}")
    if listening.servers:
        from sandboxrun.describe.page import Page

        page = Page(agent.status)
        for address, is_whole in listening.servers:
            server = listening.server(address, page.routes(text=is_whole), "--page" if is_whole else "--metrics")
            stack.callback(server.close)
            server.start()
    if options.metrics_file:
        written = _MetricsFile(options.metrics_file, agent, log)
        stack.callback(written.close)


class _Listening:
    """Where the agent listens, by its command line. `servers`: as `_servers` returns them."""

    def __init__(self, servers: list[tuple[Address, bool]], parser: Parser, args: list[str]) -> None:
        self.servers, self._parser, self._args = servers, parser, args

    def server(self, address: Address, routes: Routes, option: str) -> Server:
        """Raises ConfigError."""
        from sandboxrun.host.page import PortTaken, Server, free_port

        try:
            return Server(address, routes)
        except PortTaken as error:
            port = free_port(address)
            if port is None:
                raise
            from sandboxrun.cli.mistakes import again_hint, with_option

            words = with_option(self._args, option, str(replace(address, port=port)))
            raise ConfigError(str(error), hint=again_hint(self._parser, words)) from error


class _MetricsFile:
    """Written again every METRICS_SECONDS, and removed at the end, so that nobody reads old figures."""

    def __init__(self, path: str, agent: Agent, log: Log) -> None:
        self._path, self._agent, self._log = path, agent, log
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        from sandboxrun.describe.metrics import write_textfile

        said = ""
        while True:
            try:
                write_textfile(self._path, self._agent.status(), clock=time.monotonic())
                said = ""
            except OSError as error:
                if said != str(error):
                    self._log.warning("metrics", f"{self._path} cannot be written: {error.strerror}")
                said = str(error)
            if self._closed.wait(METRICS_SECONDS):
                return

    def close(self) -> None:
        self._closed.set()
        self._thread.join(METRICS_SECONDS)
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def _parser() -> Parser:
    parser = Parser(
        prog="sandboxrun agent",
        usage="sandboxrun agent [options] [TYPE …]",
        description="Run the ordered workers of these types, many in one process, and keep them running.",
        epilog=_EPILOG,
    )
    parser.add_argument("types", metavar="TYPE", nargs="*")
    connect_option(parser)
    parser.add_argument("--policy", metavar="FILE", help="a policy file instead of the user's policy.toml")
    parser.add_argument(
        "--audit",
        metavar="FILE",
        action="append",
        default=[],
        help='append each decision to FILE as a line of JSON; FILE "journal" is the systemd journal',
    )
    parser.add_argument("--most", metavar="N", help="how many workers it runs at most (default: 200, at most 400)")
    parser.add_argument("--spares", metavar="N", help="how many processes it keeps ready (default: 2)")
    parser.add_argument(
        "--key-file",
        metavar="[TYPE=]FILE",
        action="append",
        default=[],
        help="the key of the workers' secrets, of one type or of all (default: $CREDENTIALS_DIRECTORY/key, if it is there)",
    )
    parser.add_argument(
        "--page",
        metavar="HOST:PORT",
        help="show what the workers do there, to browsers and Prometheus of this host, such as 127.0.0.1:9300",
    )
    parser.add_argument("--metrics", metavar="HOST:PORT", help="show only the metrics there, also to other hosts")
    parser.add_argument("--metrics-file", metavar="FILE", help="write the metrics to FILE, for node_exporter")
    parser.add_argument(
        "--json-logs", action="store_true", help="print the messages of sandboxrun as JSON, one object a line"
    )
    return parser


def _options(options: argparse.Namespace, folders: Folders) -> AgentOptions:
    """From the command line, and from agent.toml what it does not say. Raises UsageError, ConfigError."""
    from sandboxrun.host import agentfile
    from sandboxrun.redis.store import DEFAULT_URL

    told = agentfile.read(folders)
    types = tuple(dict.fromkeys(map(keys.check_type, options.types))) or told.get("types", ())
    if not types:
        raise UsageError(
            f"TYPE is missing, and {agentfile.path_of(folders)} names no types", hint="sandboxrun agent TYPE"
        )
    most = options.most or told.get("most-workers", agentfile.WORKERS_DEFAULT)
    spares = options.spares or told.get("spares", agentfile.SPARES_DEFAULT)
    return agentfile.AgentOptions(
        redis_url=options.redis or os.environ.get("REDIS_URL") or DEFAULT_URL,
        types=types,
        most=agentfile.number(most, "--most", 1, agentfile.WORKERS_MAX),
        memory=told.get("memory", 0),
        spares=agentfile.number(spares, "--spares", 0, agentfile.SPARES_MAX),
        page=options.page or told.get("page", ""),
        metrics=options.metrics or "",
        metrics_file=options.metrics_file or told.get("metrics-file", ""),
        policy=options.policy,
        audit=tuple(options.audit),
        key_lines=agentfile.key_lines(options.key_file, os.environ),
    )


def _check_types(options: AgentOptions, log: Log, parser: Parser, args: list[str], *, named: bool) -> None:
    """Refuse a type without a URL if a similar type has one; otherwise only warn.

    An agent may be started before its types are configured, so types of agent.toml are never refused. Raises NotConfigured.
    """
    from sandboxrun.cli.known import has_url, unconfigured
    from sandboxrun.cli.mistakes import again_hint
    from sandboxrun.cli.redis import connected

    with contextlib.suppress(ConnectionLost), connected(options.redis_url) as connection:
        for type_ in options.types:
            if has_url(connection, type_):
                continue
            message, near = unconfigured(connection, type_)
            if named and near is not None:
                meant = list(args)
                meant[meant.index(type_)] = near
                raise NotConfigured(message, hint=again_hint(parser, meant))
            log.warning("type", f"{message} yet", hint=(f"sandboxrun set {type_} url=URL version=VERSION",))


def _check_redis(options: AgentOptions, log: Log) -> None:
    """Wait for Redis, and ask about one that requires no password, as a run does."""
    from sandboxrun.host.open_redis import check_open_redis
    from sandboxrun.redis.connection import delays

    said, waits = False, delays()
    for type_ in options.types:
        while True:
            try:
                check_open_redis(
                    options.redis_url,
                    type_,
                    "1",
                    policy=options.policy,
                    say=lambda message: log.info("policy", message),
                )
                break
            except ConnectionLost as error:
                if not said:
                    log.warning("wait", f"{error}; waiting for Redis", hint=error.hint)
                said = True
            time.sleep(next(waits))
