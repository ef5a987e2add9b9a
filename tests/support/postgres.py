"""Real PostgreSQL servers: on a loopback port and a Unix socket, with SCRAM passwords, that tests may crash and fail over.

PostgreSQL refuses to run as root: the servers of root's tests belong to the user `postgres`, or to 65534.
The fixture `postgres` is a new `Database` on the server of this process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

if TYPE_CHECKING:
    import psycopg

START_SECONDS = 60
PASSWORD = "pass-of-"  # and the role's name
SUPERUSER = "postgres"
# What a database of a test has. What `owner` creates, `writer` may INSERT and SELECT and `reader` SELECT; `stranger` may
# connect, and nothing else.
OWNER, WRITER, READER, STRANGER = ROLES = ("owner", "writer", "reader", "stranger")
_TEMPLATE = "template_tests"
_PR_SET_PDEATHSIG = 1
# A killed process loses nothing that it has written to a file, whether synced or not: only a machine does.
_SETTINGS = (
    "fsync = off",
    "full_page_writes = off",
    "listen_addresses = '127.0.0.1'",
    "max_connections = 60",
    "dynamic_shared_memory_type = mmap",  # files of the data folder: a crash leaves nothing elsewhere
)


class Server:
    """A context manager. `settings`: lines of postgresql.conf."""

    def __init__(self, *settings: str) -> None:
        self._settings = [*_SETTINGS, *settings]
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self.port = 0

    def __enter__(self) -> Server:
        self.folder = _new_folder()  # also that of the Unix socket
        self.data = self.folder / "data"
        try:
            self._fill()
            self._configure()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.stop()
        self._remove_shared_memory()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _fill(self) -> None:
        run_as_server("cp", "-a", _initialized(), self.data)

    def _configure(self) -> None:
        self.port = _free_port()
        lines = [*self._settings, f"port = {self.port}", f"unix_socket_directories = '{self.folder}'"]
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join(["", *lines, ""]))

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def start(self) -> None:
        """Start it, and return once it accepts connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [program("postgres"), "-D", self.data], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                process_group=0, preexec_fn=_end_with_parent, **_as_server(),
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            assert self.running and time.monotonic() < deadline, f"PostgreSQL did not start: {self.log[-2000:]}"
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order: its clients get an error, and it writes a checkpoint (SIGINT, a fast shutdown)."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_SECONDS)

    def restart(self) -> None:
        """Of a running server, one that was stopped, or one that has crashed; on the same port."""
        if self.running:
            self.stop()
        self.start()

    def crash(self) -> None:
        """Kill all its processes at once. `restart` recovers from the write-ahead log."""
        assert self._process is not None and self.running
        pids = [self._process.pid, *_children(self._process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + START_SECONDS
        while any(_parent_if_alive(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.005)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes stand still; the kernel still accepts connections and bytes for it."""
        assert self._process is not None
        pids = [self._process.pid, *_children(self._process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def reload(self, *settings: str) -> None:
        """Change settings that need no restart, such as `default_transaction_read_only = on`."""
        for line in settings:
            self.execute(f"ALTER SYSTEM SET {line}")
        self.execute("SELECT pg_reload_conf()")

    def execute(self, sql: str, parameters: Sequence[Any] = (), database: str = "postgres") -> list[tuple[Any, ...]]:
        """As the superuser, in a transaction of its own."""
        with _connect(self.url(database)) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def url(self, database: str, role: str = SUPERUSER, password: str | None = None, port: int | None = None) -> str:
        """`port`: that of a relay."""
        password = quote(PASSWORD + role if password is None else password, safe="")
        return f"postgresql://{role}:{password}@127.0.0.1:{port or self.port}/{database}"

    @contextlib.contextmanager
    def database(self) -> Iterator[Database]:
        """A new one, which belongs to `owner`; dropped at the end, with all changed settings."""
        if not self.running:  # an earlier test was killed before it could restart it
            self.start()
        self._databases += 1
        name = f"test_{self._databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {_TEMPLATE} OWNER {OWNER}")
        try:
            yield Database(self, name)
        finally:
            if not self.running:
                self.start()
            self.execute("ALTER SYSTEM RESET ALL")
            self.execute("SELECT pg_reload_conf()")
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def _ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            import psycopg

            with contextlib.suppress(psycopg.OperationalError):  # the system is starting up
                _connect(self.url("postgres")).close()
                return True
        return False

    def _remove_shared_memory(self) -> None:
        """What a crashed server leaves in the kernel until it is started again."""
        with contextlib.suppress(OSError):
            words = (self.data / "postmaster.pid").read_text().split("\n")[6].split()
            subprocess.run(["ipcrm", "-m", words[1]], stderr=subprocess.DEVNULL, check=False)


class Replica(Server):
    """A copy of `primary` that follows it, read-only until `promote`."""

    def __init__(self, primary: Server) -> None:
        super().__init__()
        self.primary = primary

    def _fill(self) -> None:
        source = self.primary.url("postgres")
        run_as_server(
            program("pg_basebackup"), "-D", self.data, "-d", source, "-R", "-X", "stream", "-c", "fast", "--no-sync"
        )

    def promote(self) -> None:
        """Make it a server that accepts writes; returns once it does."""
        assert self.execute("SELECT pg_promote()") == [(True,)]

    def caught_up(self) -> bool:
        """Has it replayed all that the primary has written?"""
        [(written,)] = self.primary.execute("SELECT pg_current_wal_lsn()")
        return self.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", [written]) == [(True,)]


class Database:
    def __init__(self, server: Server, name: str) -> None:
        self.server, self.name = server, name

    def url(self, role: str = OWNER, password: str | None = None, port: int | None = None) -> str:
        """With the role's password, or another; on loopback. `port`: that of a relay."""
        return self.server.url(self.name, role, password, port)

    def socket_url(self, role: str = OWNER) -> str:
        """On the Unix socket, which needs the password too."""
        host = quote(str(self.server.folder), safe="")
        return f"postgresql://{role}:{PASSWORD}{role}@{host}:{self.server.port}/{self.name}"

    def connect(self, role: str = OWNER) -> psycopg.Connection[tuple[Any, ...]]:
        """Each statement commits, unless it is in `connection.transaction()`."""
        return _connect(self.url(role))

    def execute(self, sql: str, parameters: Sequence[Any] = (), role: str = OWNER) -> list[tuple[Any, ...]]:
        """One or more statements (without parameters), committed; the rows of the last, if it has any."""
        with self.connect(role) as connection:
            cursor = connection.execute(sql.encode(), parameters or None)
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []


def program(name: str) -> str:
    """The path of a program of the newest installed PostgreSQL. Without it the test is skipped, or fails in CI."""
    found = shutil.which(name) if name == "postgres" else None
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), reverse=True)
    for folder in folders if found is None else [Path(found).parent]:
        if os.access(folder / name, os.X_OK):
            return str(folder / name)
    if os.environ.get("CI"):
        pytest.fail("no PostgreSQL is installed")
    pytest.skip("no PostgreSQL is installed")


def run_as_server(*words: str | Path) -> None:
    done = subprocess.run(words, cwd="/", capture_output=True, text=True, timeout=100, **_as_server())
    assert done.returncode == 0, done.stderr


@functools.cache
def _initialized() -> Path:
    """A data folder with roles and the template of the databases, made once for all servers of this process."""
    folder = _new_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "password").write_text(PASSWORD + SUPERUSER)
    run_as_server(
        program("initdb"), "-D", folder / "data", "-U", SUPERUSER, "-A", "scram-sha-256", "-E", "UTF8",
        "--pwfile", folder / "password", "--locale=C.UTF-8", "--no-sync", "--no-instructions",
    )  # fmt: skip
    roles = "".join(f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}{role}';\n" for role in ROLES)
    grants = (
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT INSERT, SELECT ON TABLES TO {WRITER};\n"
        f"ALTER DEFAULT PRIVILEGES FOR ROLE {OWNER} GRANT SELECT ON TABLES TO {READER};\n"
    )
    for database, script in (("postgres", f"{roles}CREATE DATABASE {_TEMPLATE};\n"), (_TEMPLATE, grants)):
        single = [program("postgres"), "--single", "-F", "-j", "-D", folder / "data", database]
        separated = script.replace(";\n", ";\n\n")  # -j: a statement ends with an empty line
        subprocess.run(single, input=separated.encode(), cwd="/", check=True, capture_output=True, **_as_server())
    return folder / "data"


def _connect(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    import psycopg

    return psycopg.connect(url, autocommit=True, connect_timeout=START_SECONDS)


def _as_server() -> dict[str, Any]:
    """Arguments of Popen."""
    if os.getuid() != 0:
        return {}
    uid, gid = _server_user()
    return {"user": uid, "group": gid, "extra_groups": []}


def _server_user() -> tuple[int, int]:
    try:
        found = pwd.getpwnam("postgres")
    except KeyError:
        return 65534, 65534
    return found.pw_uid, found.pw_gid


def _new_folder() -> Path:
    """Of the server's user, who must be able to enter all folders above; others can enter it too, for the socket."""
    above = Path(tempfile.gettempdir()).resolve()
    if os.getuid() == 0 and not all(path.stat().st_mode & 0o001 for path in (above, *above.parents)):
        above = Path("/tmp")
    folder = Path(tempfile.mkdtemp(prefix="postgres-", dir=above))
    folder.chmod(0o711)
    if os.getuid() == 0:
        os.chown(folder, *_server_user())
    return folder


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _children(pid: int) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [child for child in pids if _parent_if_alive(child) == pid]


def _parent_if_alive(pid: int) -> int | None:
    """None of a process that has ended, whether it was reaped or not."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return int(parent) if state not in "ZX" else None


def _end_with_parent() -> None:
    """In the new child: an immediate shutdown when this thread ends, which also frees the shared memory."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGQUIT), 0, 0, 0)
