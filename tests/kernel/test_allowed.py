"""What workers do all day, unhindered."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import Arena, Listener

from sandboxrun.redis import embedded


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with embedded.server() as url:
        yield url


def _port(url: str) -> str:
    return url.rpartition("@")[2]


def test_redis_py_works(arena: Arena, redis_url: str) -> None:
    code = """
    def attempt():
        import redis
        r = redis.Redis.from_url(V["url"])
        r.set("key", "value")
        with r.pipeline() as pipe:
            pipe.get("key")
            pipe.xadd("stream", {"a": "b"})
            return pipe.execute()[0].decode()
    """
    assert arena.confined(code, redis=_port(redis_url), url=redis_url).value == "value"


def test_redis_py_asyncio_works(arena: Arena, redis_url: str) -> None:
    code = """
    def attempt():
        import asyncio
        import redis.asyncio as redis
        async def main():
            async with redis.Redis.from_url(V["url"]) as r:
                await r.set("key", "value")
                return (await r.get("key")).decode()
        return asyncio.run(main())
    """
    assert arena.confined(code, redis=_port(redis_url), url=redis_url).value == "value"


def test_redis_on_a_unix_socket_works(arena: Arena) -> None:
    code = """
    def attempt():
        import redis
        return redis.Redis.from_url(V["url"]).ping()
    """
    with embedded.server(unix_socket=True) as url:
        assert arena.confined(code, redis=_port(url), url=url).value is True


def test_httpx_works_sync_and_async_to_an_allowed_name(arena: Arena, tmp_path: Path) -> None:
    import http.server
    import threading

    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "page").write_text("hello")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "www"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    code = """
    def attempt():
        import asyncio, httpx
        url = f"http://localhost:{V['port']}/page"
        async def main():
            async with httpx.AsyncClient(trust_env=False) as client:
                return (await client.get(url)).text
        return [httpx.get(url, trust_env=False).text, asyncio.run(main())]
    """
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        allow = {"net": f"localhost:{server.server_port}"}
        assert arena.confined(code, allow=allow, port=server.server_port).value == ["hello", "hello"]
        server.shutdown()


def test_a_tls_handshake_works(arena: Arena, tmp_path: Path) -> None:
    import socket
    import ssl
    import threading

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    code = """
    def attempt():
        import ssl
        ssl.create_default_context()  # the system's certificates can be read
        context = ssl.create_default_context(cadata=V["certificate"])
        with socket.create_connection(("localhost", V["port"]), timeout=5) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as s:
                return [s.version() >= "TLSv1.2", s.recv(5).decode()]
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with context.wrap_socket(peer, server_side=True) as tls:
                tls.sendall(b"hello")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = server.getsockname()[1]
        found = arena.confined(code, allow={"net": f"localhost:{port}"}, port=port, certificate=certificate.read_text())
        thread.join(5)
    assert found.value == [True, "hello"]


@pytest.mark.parametrize(
    ("what", "code", "expected"),
    [
        (
            "threads",
            "import threading\ndone = []\nthreads = [threading.Thread(target=done.append, args=(i,)) for i in range(20)]\n"
            "[t.start() for t in threads]; [t.join() for t in threads]\nreturn len(done)",
            20,
        ),
        ("thread pool", "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as p: return sum(p.map(abs, range(5)))", 10),
        ("json", "return json.loads(json.dumps({'a': 1}))", {"a": 1}),
        (
            "sqlite3 in scratch",
            "import sqlite3\ndb = sqlite3.connect('db')\ndb.execute('pragma journal_mode=wal')\ndb.execute('create table t(a)')\n"
            "db.execute('insert into t values (1)')\ndb.commit()\nreturn db.execute('select sum(a) from t').fetchone()[0]",
            1,
        ),
        ("zoneinfo", "from zoneinfo import ZoneInfo\nimport datetime\nreturn str(datetime.datetime(2026, 7, 1, tzinfo=ZoneInfo('Europe/Berlin')).utcoffset())", "2:00:00"),
        ("tempfile", "import tempfile\nwith tempfile.TemporaryDirectory() as d, tempfile.NamedTemporaryFile(dir=d) as f:\n f.write(b'x'); return d.startswith(os.environ['TMPDIR'])", True),
        ("rename and remove", "open('a','w').close(); os.rename('a','b'); os.mkdir('d'); os.rename('b','d/b'); os.remove('d/b'); os.rmdir('d'); return os.listdir() == []", True),
        (
            "copies",  # pathlib's, where there is one, goes on after FICLONE with ENOTSUP only
            "import pathlib, shutil\npathlib.Path('a').write_text('x')\nshutil.copy2('a', 'b')\nshutil.copytree('.', 'd')\n"
            "getattr(pathlib.Path, 'copy', shutil.copy)(pathlib.Path('a'), pathlib.Path('c'))\nreturn open('c').read() + open('d/b').read()",
            "xx",
        ),
        ("its own scheduling", "return [os.sched_getaffinity(os.getpid()) == os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, os.getpid()) == os.nice(0)]", [True, True]),
        ("asyncio", "import asyncio\nreturn asyncio.run(asyncio.sleep(0.01, 'slept'))", "slept"),
        ("signals to itself", "import signal\ngot = []\nsignal.signal(signal.SIGUSR1, lambda *a: got.append(1))\nos.kill(os.getpid(), signal.SIGUSR1)\nreturn got", [1]),
        ("logging, uuid, random", "import logging, uuid, random, secrets\nlogging.warning('x'); return [len(str(uuid.uuid4())), len(secrets.token_hex(4))]", [36, 8]),
        ("mimetypes", "import mimetypes\nreturn mimetypes.guess_type('a.html')[0]", "text/html"),
        ("cryptography", "from cryptography.fernet import Fernet\nf = Fernet(Fernet.generate_key())\nreturn f.decrypt(f.encrypt(b'x')).decode()", "x"),
        ("ctypes", "import ctypes\nreturn ctypes.CDLL(None).getpid() == os.getpid()", True),
        ("cpu count", "return os.cpu_count() >= 1", True),
        ("exit and quit", "return [callable(exit), callable(quit)]", [True, True]),
    ],
)  # fmt: skip
def test_the_standard_library_works(arena: Arena, what: str, code: str, expected: object) -> None:
    body = "def attempt():\n" + "".join(f"    {line}\n" for line in code.splitlines())
    found = arena.confined(body)
    assert (found.value, found.errno) == (expected, None), found.stderr


def test_write_granted_folders_can_be_written(arena: Arena, tmp_path: Path) -> None:
    code = "def attempt():\n    open(V['path'], 'w').close()\n    return os.path.exists(V['path'])"
    data = tmp_path / "data"
    data.mkdir()
    assert arena.confined(code, allow={"write": str(data)}, path=str(data / "file")).value is True
    assert (data / "file").exists()


def test_any_port_of_a_host_and_blocks_are_granted(arena: Arena, listener: Listener) -> None:
    code = """
    def attempt():
        with socket.create_connection(("127.0.0.1", V["port"]), timeout=5) as s:
            return s.recv(5).decode()
    """
    for target in ("127.0.0.1", "127.0.0.0/8", f"127.0.0.0/8:{listener.port}"):
        assert arena.confined(code, allow={"net": target}, port=listener.port).value == "hello"
