"""docs/protocol.md says what the code does: names, defaults, limits, codes."""

from __future__ import annotations

import re
from pathlib import Path

from sandboxrun import protocol
from sandboxrun.client import put
from sandboxrun.config import keys
from sandboxrun.config.fields import ALIASES, LOOP_NAMES, LOOP_NUMBERS, parse_loop
from sandboxrun.protocol import HANDED_BACK_MILLIS
from sandboxrun.protocol.calling import NOTE, NOTED_MAX, PATH_MAX
from sandboxrun.protocol.request import METHOD_MAX_CHARS, entry, trace_fields
from sandboxrun.worker import claims, kept, rendering, sweep, tracing

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()


def test_every_key_is_in_the_table() -> None:
    table = PAGE.partition("## Keys")[2].partition("TYPE is")[0]
    for key in (
        keys.type_key("TYPE"), keys.worker_key("TYPE", "ID"), keys.request_stream("TYPE"), keys.response_stream("TYPE"),
        keys.dead_stream("TYPE"), keys.reply_key("REF"), keys.trace_key("REF"), keys.fence_key("STREAM", "CONSUMER"),
    ):  # fmt: skip
        assert f"| `{key}` |" in table
    assert f"`{keys.old_fence_key('STREAM', 'CONSUMER')}`" in PAGE
    assert (keys.TYPE_MAX_CHARS, keys.ID_MAX_CHARS, keys.REF_MAX_CHARS) == (64, 128, 256)
    assert f"the consumer group is `{protocol.GROUP}`" in table


def test_every_setting_has_its_default() -> None:
    table = PAGE.partition("## Settings")[2].partition("## ")[0]
    for name, (default, _, _) in LOOP_NUMBERS.items():
        assert f"| `{name}` | {default} |" in table
    loop = parse_loop({}, "TYPE", "ID")
    assert f"| `requestStream`, `responseStream` | `{loop.request_stream}`, `{loop.response_stream}` |" in table
    assert all(f"`{name}`" in table for name in (*LOOP_NAMES, *ALIASES))


def test_every_code_is_in_the_table() -> None:
    table = PAGE.partition("| code | meaning |")[2].partition("A code other")[0]
    codes = {value for name, value in vars(protocol).items() if name.isupper() and 200 <= _int(value) < 600}
    assert codes == {int(number) for number in re.findall(r"\b\d{3}\b", table)}


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def test_the_fields_of_a_call_are_those_that_the_client_writes() -> None:
    block = PAGE.partition("### What a client writes")[2].partition("EXEC")[0]
    assert "ref REF  type TYPE  requestData JSON  created TIME" in block
    assert list(trace_fields("", "", "", "")) == ["ref", "type", "requestData", "created"]
    assert "ref REF  type TYPE  data JSON  time TIME  deadline MILLISECONDS" in block
    assert entry("", "", "", "", 0.0)[::2] == ["ref", "type", "data", "time", "deadline"]
    table = PAGE.partition("| field of the entry |")[2].partition("\n\n")[0]
    for name in entry("", "", "", "", 0.0, method="m", traceparent="t", path="p")[::2]:
        assert f"| `{name}` |" in table
    for name in tracing.FIELDS:
        assert f"`{name}`" in PAGE.partition("### Trace context")[2].partition("### ")[0]
    assert f"at most {PATH_MAX};" in table and f"at most {METHOD_MAX_CHARS} characters" in table
    assert f"at most {NOTED_MAX} calls" in PAGE and f"`{NOTE}REF`" in PAGE


def test_the_limits_are_those_of_the_code() -> None:
    assert (protocol.PAYLOAD_MAX_BYTES, protocol.RESULT_MAX_BYTES) == (1 << 20, 8 << 20)
    assert "have at most 1 MiB" in PAGE and "at most 8 MiB" in PAGE
    assert f"at most {protocol.MESSAGE_MAX_CHARS:,} characters" in PAGE
    assert f"EXPIRE req:REF:h  {protocol.TRACE_EXPIRE_SECONDS}\n" in PAGE
    assert f"EXPIRE req:fence-NAME:h {put.FENCE_EXPIRE_SECONDS}`" in PAGE
    assert f"MAXLEN ~ {rendering.DEAD_STREAM_LIMIT} " in PAGE
    assert f"IDLE {HANDED_BACK_MILLIS} RETRYCOUNT 0 JUSTID" in PAGE
    assert f"IDLE takeoverMillis - + {sweep.TAKE_MOST}" in PAGE
    assert kept.RENEW_PART == 6 and "six times in\n`takeoverMillis`" in PAGE
    assert claims.SETTLE_PART == 3 and "a third of `takeoverMillis`" in PAGE
