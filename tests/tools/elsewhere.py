"""Run the suite as if on another machine: other names, ids, clocks, user, locale, signals, limits and environment.

    python tests/tools/elsewhere.py [--uid UID] [--umask MODE] [--no-ipv6] [--keep FOLDER] [COMMAND…]

COMMAND (default: tests/run.sh) runs in a copy of the project, as UID (default: 4321, an id without a name; 0 is root). The copy
and its .venv are made while the network is still there; with FOLDER the next run uses them again.

Needs root. The command gets its own UTS, mount, PID, IPC, network, cgroup and time namespaces. The wall clock has no namespace, so
it stays. The values here are hostile but legal: each of them occurs on some machine.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOST = "Another-Machine.7f3a.example.internal"
BOOT_ID = "00000000-1111-4222-8333-deadbeef4444"
MACHINE_ID = "0123456789abcdef0123456789abcdef"
ZONE = "/usr/share/zoneinfo/Pacific/Chatham"  # 12:45 or 13:45 ahead of UTC
UPTIME_SECONDS = 86_400_123  # the clocks since boot are ahead by this
IGNORED = (signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM, signal.SIGUSR1)
BLOCKED = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGCHLD, signal.SIGWINCH)
PORTS = (8000, 9229, 6380)  # another program listens there, and on the port of Redis
MS_BIND, SIOCSIFFLAGS, IFF_UP_RUNNING = 4096, 0x8914, 0x41
COPIED = ("--exclude=./.venv", "--exclude=./.git", "--exclude=./demo/.state", "--exclude=__pycache__")
POLICY = '[worker."*"]\nallow-net = []\nallow-read = []\n'


def environment(folder: Path) -> dict[str, str]:
    """Variables that a machine may have set."""
    home, other = folder / "home", folder / "nothing-here"
    return {
        "PATH": f"{os.environ.get('PATH', os.defpath)}::bin:{other}",
        "HOME": str(home),
        "TMPDIR": str(folder / "a temporary folder, ünlike others"),
        "USER": "somebody else",
        "LOGNAME": "somebody",
        "SHELL": "/bin/false",
        "LANG": "tr_TR.UTF-8",
        "LC_ALL": "tr_TR.ISO-8859-9",
        "LANGUAGE": "tr:de",
        "TZ": "Asia/Kathmandu",
        "TERM": "xterm-256color",
        "COLUMNS": "37",
        "LINES": "5",
        "NO_COLOR": "1",
        "FORCE_COLOR": "1",
        "PY_COLORS": "1",
        "REDIS_URL": "redis://nobody:wrong@127.0.0.1:1/9",
        "SANDBOXRUN_HASH_URL": "redis://127.0.0.1:2",
        "SANDBOXRUN_TRACE_STARTUP": str(other / "trace"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_CONFIG_DIRS": str(home / ".config"),
        "XDG_CACHE_HOME": str(other),
        "XDG_STATE_HOME": str(other),
        "XDG_DATA_HOME": str(other),
        "XDG_RUNTIME_DIR": str(other),
        "NETRC": str(other),
        "SSL_CERT_FILE": str(other),
        "SSL_CERT_DIR": str(other),
        "OPENSSL_CONF": str(other),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "default",
        "PYTHONSTARTUP": str(other),
        "PYTHONPATH": str(other),
        "PYTHONTRACEMALLOC": "1",
        "PYTHONBREAKPOINT": "0",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "GIT_DIR": str(other),
        "MAKEFLAGS": "-j",
        "POSIXLY_CORRECT": "1",
        "ENV": str(other),
        "BASH_ENV": str(other),
        "CDPATH": "/",
        "EDITOR": "/bin/false",
        "PAGER": "/bin/false",
        "WORKER_URL": "http://127.0.0.1:1/x",
        "WORKER_VERSION": "v9",
    } | dict.fromkeys(("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")


def copied(folder: Path, uid: int) -> Path:
    """The project in `folder`, with an installed .venv, owned by `uid`."""
    copy = folder / "copy"
    copy.mkdir(exist_ok=True)
    kept = copy / ".venv"
    for path in copy.iterdir():
        if path != kept:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    pack = subprocess.Popen(["tar", "-c", *COPIED, "."], cwd=ROOT, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", copy], stdin=pack.stdout, check=True)
    if pack.wait() != 0:
        raise SystemExit("error: the project could not be copied")
    subprocess.run(["chown", "-R", f"{uid}:{uid}", copy], check=True)
    env = {name: value for name, value in os.environ.items() if name != "VENV"} | {"HOME": str(copy)}
    if uid:
        env["PATH"] = "/usr/local/bin:/usr/bin:/bin"
    subprocess.run([*as_user(uid), "demo/setup.sh", "test"], cwd=copy, env=env, check=True)
    return copy


def as_user(uid: int) -> list[str]:
    return ["setpriv", "--reuid", str(uid), "--regid", str(uid), "--clear-groups"] if uid else []


def bind(source: Path, path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(os.fsencode(source), os.fsencode(path), None, MS_BIND, None) < 0:
        raise OSError(ctypes.get_errno(), f"mount over {path}")


def another_machine(folder: Path, *, ipv6: bool) -> None:
    """In the namespaces: its names, its ids, its zone and its network of loopback alone."""
    socket.sethostname(HOST)
    boot_id = folder / "boot_id"
    boot_id.write_text(f"{BOOT_ID}\n")
    boot_id.chmod(0o444)
    bind(boot_id, "/proc/sys/kernel/random/boot_id")
    # A copy of the whole folder: /etc/localtime is a link, and what is mounted over it would lie over the zone UTC.
    etc = folder / "etc"
    shutil.rmtree(etc, ignore_errors=True)
    subprocess.run(["cp", "-a", "/etc", etc], check=True)
    for name, text in {
        "machine-id": MACHINE_ID,
        "hostname": HOST,
        "timezone": ZONE.partition("zoneinfo/")[2],
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {HOST}\n" + "::1 localhost ip6-localhost\n" * ipv6,
    }.items():
        (etc / name).unlink(missing_ok=True)
        (etc / name).write_text(f"{text}\n")
        (etc / name).chmod(0o644)
    (etc / "localtime").unlink(missing_ok=True)
    (etc / "localtime").symlink_to(ZONE)
    bind(etc, "/etc")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP_RUNNING))
    if not ipv6:
        for which in ("all", "default", "lo"):
            Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6").write_text("1")


def takes_connections(port: int) -> None:
    server = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        while True:
            server.accept()[0].close()

    threading.Thread(target=serve, daemon=True).start()


def inside(folder: Path, copy: Path, options: argparse.Namespace) -> int:
    another_machine(folder, ipv6=not options.no_ipv6)
    for port in PORTS:
        takes_connections(port)
    program = shutil.which("redis-server")
    redis = program and subprocess.Popen(
        [program, "--port", "6379", "--save", "", "--requirepass", "of somebody", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    env = environment(folder)
    temporary = Path(env["TMPDIR"])
    temporary.mkdir(exist_ok=True)
    os.chown(temporary, options.uid, options.uid)

    def strange() -> None:
        os.umask(options.umask)
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED)

    command = [*as_user(options.uid), *(options.command or ["tests/run.sh"])]
    try:
        return subprocess.run(
            command, cwd=copy, env=env, stdin=subprocess.DEVNULL, preexec_fn=strange, restore_signals=False,
            start_new_session=True, check=False,
        ).returncode  # fmt: skip
    finally:
        if redis:
            redis.kill()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--uid", type=int, default=4321)
    parser.add_argument("--umask", type=lambda text: int(text, 8), default=0o077)
    parser.add_argument("--no-ipv6", action="store_true")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    options.command = options.command[options.command[:1] == ["--"] :]
    return options


def main() -> int:
    options = parsed()
    if options.inside:
        return inside(options.inside, options.inside / "copy", options)
    if os.geteuid() != 0:
        raise SystemExit("error: another machine's namespaces need root")
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="elsewhere-")))
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
        config = (
            folder / "home/.config/sandboxrun"
        )  # a home that only root can write, with a policy that grants nothing
        config.mkdir(parents=True, exist_ok=True)
        (config / "policy.toml").write_text(POLICY)
        copied(folder, options.uid)
        kinds = ("mount", "uts", "ipc", "net", "cgroup", "pid", "time", "fork", "mount-proc", "kill-child")
        clocks = ("--monotonic", str(UPTIME_SECONDS), "--boottime", str(UPTIME_SECONDS))
        this = [sys.executable, __file__, "--inside", str(folder.absolute()), *sys.argv[1:]]
        return subprocess.run(["unshare", *(f"--{kind}" for kind in kinds), *clocks, *this], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
