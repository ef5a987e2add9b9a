"""What travels with a call: the path, the method, the traceparent, and the request that the running code handles."""

from __future__ import annotations

import contextvars
import threading
import time

import pytest

from sandboxrun.client.login import Login
from sandboxrun.client.request import Outgoing
from sandboxrun.protocol import BadRequest, call
from sandboxrun.protocol.calling import PATH_MAX, Caller, Calling, check_path, current
from sandboxrun.protocol.request import (
    entry,
    is_method,
    method_of,
    path_of,
    read,
    trace_fields,
    traceparent_of,
)
from sandboxrun.protocol.tracing import child_of, new_traceparent, parent_of, parse
from sandboxrun.worker.request import Request

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


def raw_of(*words: str) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in zip(words[::2], words[1::2], strict=True)}


def request_of(**fields: str) -> Request:
    raw = {b"data": b"{}"} | {name.encode(): value.encode() for name, value in fields.items()}
    return Request("1-0", "r", "order", {}, raw, 12.5, caller=Caller("order:1:h", "order", "ab" * 8))


def test_an_entry_carries_method_trace_and_path_and_none_of_them_is_payload() -> None:
    words = entry("r", "price", "{}", "t", 1.5, method="of", traceparent=PARENT, path=("shop", "order"))
    raw = raw_of(*words)
    assert (method_of(raw), path_of(raw)) == ("of", ("shop", "order"))
    assert parent_of(raw[b"traceparent"].decode()) == SPAN
    assert read(raw, {"price": None}, "price") == ("r", "price", {}, 1.5)


def test_method_and_path_are_payload_if_there_is_no_data() -> None:
    raw = raw_of("ref", "r", "method", "GET /", "path", "/tmp/x", "traceparent", PARENT)
    assert read(raw, {"price": None}, "price") == ("r", "price", {"method": "GET /", "path": "/tmp/x"}, None)
    assert (method_of(raw), path_of(raw)) == (None, ())
    assert parent_of(traceparent_of(raw)) != ""


def test_an_entry_without_them_is_as_it_was() -> None:
    assert entry("r", "price", "{}", "t") == ["ref", "r", "type", "price", "data", "{}", "time", "t"]
    assert trace_fields("r", "price", "{}", "t") == {"ref": "r", "type": "price", "requestData": "{}", "created": "t"}


@pytest.mark.parametrize(
    "path",
    ["Order", "order,", ",order", "order, price", "res", "a" * 65, ",".join(["order"] * 17), "\xff", "order\n", "../x"],
)
def test_a_malformed_path_is_refused(path: str) -> None:
    raw = raw_of("ref", "r", "data", "{}", "path", path)
    with pytest.raises(BadRequest, match="the request's path is"):
        read(raw, {"price": None}, "price")


@pytest.mark.parametrize("method", ["", ".", "of.", ".of", "a b", "1", "of\n", "a" * 129, "a;b", "é" * 129])
def test_a_malformed_method_is_refused(method: str) -> None:
    assert not is_method(method)
    with pytest.raises(BadRequest, match="the request's method is"):
        read(raw_of("ref", "r", "data", "{}", "method", method), {"price": None}, "price")


@pytest.mark.parametrize("method", ["of", "price.of", "price-list.of_item", "größe"])
def test_a_method_is_a_name(method: str) -> None:
    assert is_method(method)


# https://www.w3.org/TR/trace-context/#traceparent-header
@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PARENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}-01-00",
        f"00-{TRACE}-{SPAN}-01 ",
        f"00-{TRACE[1:]}-{SPAN}-01-",
        f"00_{TRACE}_{SPAN}_01",
        f"cc-{TRACE}-{SPAN}-01.",
        f"cc-{TRACE}-{SPAN}-01-" + "x" * 300,
        f"00-{TRACE}-{SPAN}-\xb2\xb2",
    ],
)
def test_a_malformed_traceparent_is_ignored(text: str) -> None:
    assert parse(text) is None
    assert child_of(text) == ""
    assert traceparent_of({b"traceparent": text.encode()}) == ""


@pytest.mark.parametrize(
    ("text", "flags"),
    [(PARENT, 1), (f"00-{TRACE}-{SPAN}-00", 0), (f"00-{TRACE}-{SPAN}-fe", 0), (f"cc-{TRACE}-{SPAN}-03-what=ever", 1)],
)
def test_a_span_of_our_own_stays_in_the_trace_with_the_flags_that_we_know(text: str, flags: int) -> None:
    child = child_of(text)
    assert parse(child) == (TRACE, child[36:52], flags)
    assert child[36:52] != SPAN
    assert child.startswith("00-")


def test_an_invented_traceparent_has_a_parent_that_does_not_exist() -> None:
    text = new_traceparent()
    assert parse(text) is not None
    assert parent_of(text) == ""
    assert parent_of(child_of(text)) != ""


def test_a_call_cycle_is_refused_with_its_path() -> None:
    calling = Calling("price", None, ("order", "price"))
    assert check_path(calling, "bank") == ("order", "price")
    with pytest.raises(call.BadRequest, match=r"^order calls itself: order → price → order; ") as error:
        check_path(calling, "order")
    assert not error.value.may_have_run
    with pytest.raises(call.BadRequest, match=r"^price calls itself: order → price → price; "):
        check_path(calling, "price")


def test_a_path_is_bounded() -> None:
    types = tuple(f"t{number}" for number in range(PATH_MAX))
    assert check_path(Calling("t15", None, types), "bank") == types
    with pytest.raises(
        call.BadRequest, match=r"^the call to bank would make a path of 17 types; the limit is 16: t0 → "
    ):
        check_path(Calling("last", None, (*types, "last")), "bank")


def test_a_service_in_process_has_the_path_with_itself() -> None:
    outer = Calling("order", 1.5, ("order",), PARENT, "r", "ab" * 8)
    inner = outer.inner("price")
    assert (inner.type, inner.path, inner.deadline, inner.ref) == ("price", ("order", "price"), 1.5, "r")
    assert inner.noted is outer.noted
    with pytest.raises(call.BadRequest, match="order calls itself: order → price → order"):
        inner.inner("order")


def test_a_request_says_what_its_calls_inherit() -> None:
    request = request_of(path="shop", method="of", traceparent=PARENT)
    assert (request.method, request.path) == ("of", ("shop",))
    token = current.set(request)
    try:
        calling = current.get()
    finally:
        current.reset(token)
    assert calling is not None
    assert calling is request._as_calling()
    assert (calling.type, calling.path, calling.ref) == ("order", ("shop", "order"), "r")
    assert (calling.deadline, calling.nonce, calling.caller.key) == (12.5, "ab" * 8, "order:1:h")
    assert calling.traceparent == request.traceparent
    assert parse(request.traceparent) == (TRACE, request.traceparent[36:52], 1)
    assert current.get() is None


def test_a_request_without_them_has_none() -> None:
    request = request_of()
    assert (request.method, request.path, request.traceparent) == (None, (), "")
    assert request._calling is None  # nothing was made for a handler that calls nobody


def test_the_current_request_is_that_of_the_thread_and_the_context() -> None:
    token = current.set(request_of())
    try:
        seen: list[Calling | None] = []
        thread = threading.Thread(target=lambda: seen.append(current.get()))
        thread.start()
        thread.join()
        assert seen == [None]
        copied = contextvars.copy_context()
        current.set(None)
        assert current.get() is None
        assert copied.run(current.get) is not None
    finally:
        current.reset(token)


def test_a_deadline_that_no_timeout_reaches_is_none() -> None:
    """Redis would keep the traces of the handler's calls until then."""
    soon = int(time.time() * 1000) + 10_000
    for text, expected in ((str(soon), soon / 1000), ("9999999999999999", None)):
        assert read(raw_of("ref", "r", "data", "{}", "deadline", text), {"price": None}, "price")[3] == expected


def outgoing(calling: Calling) -> bytes:
    token = current.set(calling)
    try:
        return Outgoing("price", {}, 10.0, None, login=Login("redis://127.0.0.1:1")).commands()
    finally:
        current.reset(token)


@pytest.mark.parametrize(("seconds", "expires"), [(None, 1), (60, 2)])
def test_a_call_does_not_keep_the_trace_of_a_request_without_a_deadline(
    monkeypatch: pytest.MonkeyPatch, seconds: int | None, expires: int
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    deadline = None if seconds is None else time.time() + seconds
    sent = outgoing(Calling("order", deadline, ("order",), "", "r", "ab" * 8))
    assert sent.count(b"EXPIRE") == expires
    assert b"req:r:h" in sent


def test_a_thread_that_handles_no_request_notes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    assert b"req::h" not in outgoing(Calling("order", None, ("order",), "", "", "ab" * 8))
