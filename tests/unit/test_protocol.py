"""What a client writes, a worker reads, and the other way round: entries, replies, traces, and the errors of both."""

from __future__ import annotations

import contextvars
import json
from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from parsed import parse

from sandboxrun import client, protocol, worker
from sandboxrun.client.request import Outgoing
from sandboxrun.config import keys
from sandboxrun.config.fields import parse_loop
from sandboxrun.protocol.call import CallError, error_of
from sandboxrun.worker.answer import Answers
from sandboxrun.worker.handlers import Handler
from sandboxrun.worker.rendering import Entry, Renderer
from sandboxrun.worker.request import Encoder, Request

TYPES = st.from_regex(r"[a-z][-a-z0-9_]{0,10}", fullmatch=True).filter(lambda type_: type_ not in ("req", "res"))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20),  # halves of UTF-16 pairs as well
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
generated = settings(derandomize=True, database=None, deadline=None, max_examples=200)


@pytest.fixture(autouse=True)
def _nothing_on_disk(tmp_path: Any) -> None:
    set_hypothesis_home_dir(tmp_path)  # it caches tables of characters


def commands(data: bytes) -> list[list[bytes]]:
    reader = hiredis.Reader()
    reader.feed(data)
    found = []
    while (command := reader.gets()) is not False:
        found.append(command)
    return found


def pairs(words: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(words[::2], words[1::2], strict=True))


def entry_of(request: Outgoing) -> dict[bytes, bytes]:
    """What Redis gives to a worker."""
    return pairs(commands(request.commands())[2][3:])


def answered(request: Outgoing, type_: str, handle: Any) -> Entry:
    """The entry with the commands of the worker's reply."""
    loop = parse_loop({}, type_, "1")
    answers = Answers(
        {type_: Handler(handle, None, None)},
        type_,
        loop,
        Renderer(loop, type_, keys.dead_stream(type_)),
        Encoder(),
        lambda request, fields: None,
    )
    entry = Entry(b"1-0", entry_of(request))
    contextvars.copy_context().run(answers.serve, entry)  # or the next request would be a call of this one
    return entry


@generated
@given(
    type_=TYPES, data=VALUES, timeout=st.none() | st.floats(0.001, 1e8), trace=st.dictionaries(TEXT, TEXT, max_size=3)
)
def test_a_worker_reads_what_a_client_writes(
    type_: str, data: Any, timeout: float | None, trace: dict[str, str]
) -> None:
    request = Outgoing(type_, data, timeout, trace)
    hset, expire, xadd = commands(request.commands())
    found = parse("1-0", pairs(xadd[3:]), {type_: None}, default="other")
    assert (found.ref, found.type, found.data) == (request.ref, type_, data)
    assert json.dumps(found.data) == json.dumps(data)  # 1 is not 1.0, nor True
    if timeout is None:
        assert found.deadline is None
    else:
        assert found.deadline == pytest.approx(request.began + timeout, abs=0.001)
    assert xadd[:3] == [b"XADD", keys.request_stream(type_).encode(), b"*"]
    fields = pairs(hset[2:])
    assert (fields[b"ref"], fields[b"type"], fields[b"requestData"]) == (
        found.ref.encode(),
        type_.encode(),
        pairs(xadd[3:])[b"data"],
    )
    assert fields[b"created"] == pairs(xadd[3:])[b"time"]
    assert int(expire[2]) >= protocol.TRACE_EXPIRE_SECONDS


@generated
@given(type_=TYPES, result=st.dictionaries(TEXT, VALUES, max_size=4))
def test_a_client_reads_what_a_worker_answers_from_the_list_and_from_the_trace(type_: str, result: Any) -> None:
    request = Outgoing(type_, None, 5, None)
    push, expire, _, hset, _ = commands(answered(request, type_, lambda request: result).commands)
    assert (push[1], expire[1], hset[1]) == (request.key, request.key, request.trace_key.encode())
    assert hset[2] == request.trace_field.encode()
    reply = request.outcome(push[2])
    assert isinstance(reply, dict)
    assert (reply["ref"], reply["source"], reply["code"]) == (request.ref, type_, protocol.OK)
    envelope = {"ref", "source", "code", "time"}
    assert {name: reply[name] for name in result if name not in envelope} == {
        name: value for name, value in result.items() if name not in envelope
    }
    assert request.traced(hset[3]) == reply


def raising(error: BaseException) -> Any:
    def handle(request: Request) -> None:
        raise error

    return handle


ENDS: list[tuple[BaseException, int, type[CallError], bool]] = [
    (worker.BadRequest("no such user"), 400, client.BadRequest, False),
    (ValueError("why"), 500, client.RemoteError, True),
    (worker.HandlerTimeout("slow"), 500, client.RemoteError, True),
    # Of a call that the handler itself has made: its own request was accepted, and has run.
    (client.BadRequest("of another worker"), 500, client.RemoteError, True),
    (client.Expired("of another worker"), 500, client.RemoteError, True),
]


@pytest.mark.parametrize(("error", "code", "kind", "may_have_run"), ENDS)
def test_what_a_handler_raises_is_what_its_caller_gets(
    error: BaseException, code: int, kind: type[CallError], may_have_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    request = Outgoing("t", None, 5, None)
    push, *_ = commands(answered(request, "t", raising(error)).commands)
    found = request.outcome(push[2])
    assert type(found) is kind
    assert isinstance(found, CallError)
    assert (found.may_have_run, str(found)) == (may_have_run, f"t replied {code}: {error}")
    assert ("Traceback" in capsys.readouterr().err) == (code == protocol.FAILED)


def test_an_expired_request_is_an_expired_call() -> None:
    request = Outgoing("t", None, 0.001, None)
    request.deadline = request.began - 60
    push, *_ = commands(answered(request, "t", lambda request: {}).commands)
    found = request.outcome(push[2])
    assert type(found) is client.Expired
    assert isinstance(found, protocol.Expired)
    assert not found.may_have_run


def test_the_errors_of_both_sides_are_one_family() -> None:
    assert worker.BadRequest is protocol.BadRequest
    assert issubclass(client.BadRequest, worker.BadRequest)
    assert issubclass(client.Expired, protocol.Expired)
    for code, kind, exit_code in [
        (protocol.BAD_REQUEST, client.BadRequest, 65),
        (protocol.EXPIRED, client.Expired, 75),
        (protocol.FAILED, client.RemoteError, 70),
        (protocol.UNKNOWN_METHOD, client.UnknownMethod, 65),
        (protocol.NO_MOCK, client.RemoteError, 70),
    ]:
        assert error_of(code) is kind
        assert kind.exit_code == exit_code
    assert protocol.code_of(type("Mine", (worker.BadRequest,), {})) == protocol.BAD_REQUEST
    assert protocol.code_of(protocol.UnknownMethod) == protocol.UNKNOWN_METHOD
    assert protocol.code_of(client.UnknownMethod) == protocol.FAILED
