"""The server of an agent's page: what other sites, hostile clients and slow ones get from it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest
from agent_status import STATUS

from sandboxrun.describe import page as describe
from sandboxrun.describe.page import Page
from sandboxrun.errors import ConfigError, UsageError
from sandboxrun.host import page as pages
from sandboxrun.host.page import Address, Server, parse_address

SECONDS = 30


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(Address("127.0.0.1", 0), Page(lambda: STATUS).routes())
    made.start()
    yield made
    made.close()


def exchange(server: Server, data: bytes) -> bytes:
    """What the server sends until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) as client:
        received = b""
        try:
            client.sendall(data)
            while part := client.recv(65536):
                received += part
        except ConnectionError:
            pass
        return received


def get(
    server: Server, path: str = "/", *headers: str, method: str = "GET", host: str | None = "127.0.0.1"
) -> tuple[int, str, bytes]:
    """Code, head and body."""
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host is not None else []), *headers, "", ""]
    head, _, body = exchange(server, "\r\n".join(lines).encode()).partition(b"\r\n\r\n")
    return int(head.split()[1]), head.decode(), body


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/", "text/html; charset=utf-8", b"greeter"),
        ("/?still", "text/html; charset=utf-8", b"greeter"),
        ("/metrics", "text/plain; version=0.0.4; charset=utf-8", b'sandboxrun_up{type="greeter",id="1"} 1'),
        ("/status.json", "application/json", b'"type":"greeter"'),
        ("/healthz", "text/plain; charset=utf-8", b"healthy"),
    ],
)
def test_each_path_is_answered(server, path, kind, words):
    code, head, body = get(server, path)
    assert code == 200 and f"Content-Type: {kind}\r\n" in head and words in body
    assert f"Content-Length: {len(body)}\r\n" in head
    assert get(server, path, method="HEAD")[::2] == (200, b"")


def test_a_scraper_gets_the_format_that_it_asks_for(server):
    _, head, body = get(server, "/metrics", "Accept: application/openmetrics-text; version=1.0.0")
    assert "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8" in head
    assert body.endswith(b"# EOF\n")


def test_every_reply_forbids_what_it_does_not_need(server):
    for path in ("/", "/metrics", "/status.json", "/healthz", "/nothing"):
        _, head, _ = get(server, path)
        for header in (
            "Content-Security-Policy: default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options: nosniff", "X-Frame-Options: DENY", "Referrer-Policy: no-referrer",
            "Cross-Origin-Resource-Policy: same-origin", "Cache-Control: no-store", "Connection: close",
        ):  # fmt: skip
            assert header in head
        assert "Access-Control" not in head and "unsafe" not in head
    assert "; style-src 'sha256-" in get(server, "/")[1]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:9300", "localhost:8080", "LOCALHOST", "[::1]:9300", "127.8.0.1"]
)
def test_loopback_is_this_server_whatever_the_port(server, host):
    assert get(server, "/", host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9300", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "", "[::2]", "127.0.0.1@evil.example",
     "evil.example#127.0.0.1", "0.0.0.0", "2130706433", "a:b:c"],
)  # fmt: skip
def test_a_name_that_was_made_to_point_here_is_misdirected(server, host):
    code, _, body = get(server, "/", host=host)
    assert code == 421 and b"greeter" not in body


def test_a_request_names_one_host(server):
    assert get(server, "/", host=None)[0] == 400
    assert get(server, "/", "Host: evil.example")[0] == 400
    assert get(server, "/", "host:evil.example")[0] == 400


@pytest.mark.parametrize(
    "header",
    ["Origin: https://evil.example", "Origin: null", "Origin: http://evil.example:9300", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site",
     "Sec-Fetch-Site: Cross-Site, none"],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/metrics", "/status.json", "/healthz"])
def test_a_page_of_elsewhere_gets_nothing(server, header, path):
    code, _, body = get(server, path, header)
    assert code == 403 and b"greeter" not in body and b"healthy" not in body


def test_its_own_page_and_an_address_that_was_typed_are_answered(server):
    assert get(server, "/", "Origin: http://127.0.0.1:9300", "Sec-Fetch-Site: same-origin")[0] == 200
    assert get(server, "/", "Sec-Fetch-Site: none")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "get", "PRI"])
def test_only_get_and_head_are_answered(server, method):
    code, head, body = get(server, "/", "Content-Length: 100000", method=method)
    assert code == 405 and "Allow: GET, HEAD" in head and b"greeter" not in body


@pytest.mark.parametrize(
    "path",
    [
        "//evil",
        "//evil.example/",
        "/../",
        "/..%2f",
        "/%2e%2e/",
        "/metrics/",
        "/./metrics",
        "/etc/passwd",
        "/\\evil",
        "/;",
        "/index.html",
    ],
)
def test_any_other_path_is_not_found_and_never_a_redirect(server, path):
    code, head, _ = get(server, path)
    assert code == 404 and "Location" not in head


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1", b"GET / HTTP/2\r\nHost: 127.0.0.1", b"GET /\r\nHost: 127.0.0.1",
        b"GET  / HTTP/1.1\r\nHost: 127.0.0.1", b"\x16\x03\x01\x02\x00", b"GET / HTTP/1.1\r\n Host: 127.0.0.1", b"GET / HTTP/1.1\r\nHost : 127.0.0.1",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\nX: y", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX\x00: y", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: \xff",
        b"", b"\r\n",
    ],
)  # fmt: skip
def test_what_is_not_plain_http_is_a_bad_request(server, head):
    reply = exchange(server, head + b"\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    "data", [b"GET /" + b"a" * 1_000_000, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200_000], ids=["line", "headers"]
)
def test_a_head_of_a_megabyte_is_refused_and_not_kept(server, data):
    reply = exchange(server, data)
    assert reply == b"" or reply.startswith(b"HTTP/1.1 431 ")
    assert get(server, "/healthz")[0] == 200


def test_clients_that_never_end_their_request_hold_nobody_for_long(server, monkeypatch):
    monkeypatch.setattr(pages, "READ_SECONDS", 0.3)
    slow = [socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS) for _ in range(pages.CONNECTIONS_MAX)]
    stop = threading.Event()

    def drip() -> None:
        while not stop.wait(0.05):
            for client in slow:
                try:
                    client.send(b"G")
                except OSError:
                    pass

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        for client in slow:  # each is closed, although it still sends
            try:
                while client.recv(100):
                    pass
            except ConnectionError:
                pass
        assert get(server, "/healthz")[0] == 200
    finally:
        stop.set()
        dripping.join()
        for client in slow:
            client.close()


def test_a_request_is_answered_while_others_open_more_connections_than_there_are_places(server):
    slow: list[socket.socket] = []
    try:
        for _ in range(5):
            slow += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(pages.CONNECTIONS_MAX)]
            assert get(server, "/healthz")[0] == 200
    finally:
        for client in slow:
            client.close()


def test_a_flood_of_requests_renders_each_reply_once(monkeypatch):
    monkeypatch.setattr(describe, "STATUS_SECONDS", 3600)
    rendered = []
    render = describe.render
    monkeypatch.setattr(describe, "render", lambda *args, **names: rendered.append(1) or render(*args, **names))
    made = Server(Address("127.0.0.1", 0), Page(lambda: STATUS).routes())
    made.start()
    try:
        bodies = {get(made, path)[2] for path in ("/", "/?still") * 10}
        assert (len(bodies), len(rendered)) == (2, 2)
    finally:
        made.close()


def test_a_flood_of_connections_is_taken_at_a_pace():
    pace = pages.Pace(3, 10)
    assert [round(pace.wait(5.0), 3) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    assert round(pace.wait(5.2), 3) == 0.1
    assert [pace.wait(100.0) for _ in range(3)] == [0, 0, 0]
    assert pace.wait(100.0) > 0


def test_a_client_that_reads_nothing_is_left_behind(monkeypatch):
    monkeypatch.setattr(pages, "WRITE_SECONDS", 0.3)
    big = Server(
        Address("127.0.0.1", 0),
        {"/": lambda *_: pages.Reply(b"x" * 30_000_000), "/small": lambda *_: pages.Reply(b"small")},
    )
    big.start()
    deaf = socket.create_connection(("127.0.0.1", big.port))
    try:
        deaf.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert get(big, "/small")[2] == b"small"
        for _ in range(SECONDS * 100):  # its thread has ended, and its place is free
            if big._places._value == pages.CONNECTIONS_MAX:  # type: ignore[attr-defined]
                break
            threading.Event().wait(0.01)
        assert big._places._value == pages.CONNECTIONS_MAX  # type: ignore[attr-defined]
    finally:
        deaf.close()
        big.close()


def test_a_fault_of_the_page_shows_nothing_and_ends_nothing():
    def fail(*_: object) -> pages.Reply:
        raise RuntimeError("secret")

    broken = Server(Address("127.0.0.1", 0), {"/": fail})
    broken.start()
    try:
        for _ in range(2):
            code, _, body = get(broken, "/")
            assert (code, body) == (500, b"RuntimeError\n")
    finally:
        broken.close()


def test_metrics_elsewhere_answer_the_name_they_were_told():
    open_ = Server(Address("0.0.0.0", 0), Page(lambda: STATUS).routes(text=False))
    open_.start()
    try:
        assert get(open_, "/metrics", host="10.0.0.5:9300")[0] == 200  # an address cannot be rebound
        assert get(open_, "/metrics", host="evil.example:9300")[0] == 421
        assert get(open_, "/")[0] == 404
    finally:
        open_.close()


def test_a_closed_server_frees_its_port(server):
    port = server.port
    server.close()
    again = Server(Address("127.0.0.1", port), {})
    with pytest.raises(ConfigError, match=r"the agent cannot listen on 127\.0\.0\.1:\d+: Address already in use"):
        Server(Address("127.0.0.1", port), {})
    again.close()


def test_the_page_listens_on_loopback_only():
    assert parse_address("127.0.0.1:9300", "--page", "t", loopback=True) == Address("127.0.0.1", 9300)
    assert parse_address("9300", "--page", "t", loopback=True) == Address("127.0.0.1", 9300)
    assert str(parse_address("[::1]:9300", "--page", "t", loopback=True)) == "[::1]:9300"
    for text in ("0.0.0.0:9300", "10.0.0.5:9300", "web-1:9300", "[::]:9300", "localhost.evil.example:9300"):
        with pytest.raises(UsageError, match="loopback only") as caught:
            parse_address(text, "--page", "t", loopback=True)
        assert caught.value.hint == ("sandboxrun agent t --page 127.0.0.1:9300",)
    assert parse_address("0.0.0.0:9300", "--metrics", "t", loopback=False) == Address("0.0.0.0", 9300)
    for text in ("", "x", "127.0.0.1:", "127.0.0.1:99999", ":9300", "127.0.0.1:-1", "127.0.0.1:٣"):
        with pytest.raises(UsageError, match=r"expected HOST:PORT"):
            parse_address(text, "--page", "t", loopback=True)
