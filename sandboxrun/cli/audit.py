"""sandboxrun audit."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from sandboxrun.cli.parser import Parser
from sandboxrun.errors import ConfigError, IntegrityError
from sandboxrun.log import escape

LINE_MAX_BYTES = 1024 * 1024


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun audit",
        description="Print the audit log that sandboxrun TYPE ID --audit FILE wrote.",
        epilog="examples:\n  sandboxrun audit audit.log --event denial\n  sandboxrun audit audit.log --worker demo-worker:1 --json\n\n"
        "exit codes:\n  0 all lines were read   65 a line is damaged; the others were printed",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument(
        "--worker", metavar="TYPE[:ID]", help="only events of this worker, or of the workers of this type"
    )
    parser.add_argument("--event", metavar="NAME", help="only this event, such as grant, denial or end")
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    options = parser.parse_args(args)
    damaged = 0
    for number, record in _records(options.file):
        if record is None:
            damaged += 1
            print(f"warning: line {number} is damaged", file=sys.stderr)
        elif _wanted(record, options.worker, options.event):
            print(json.dumps(record) if options.json else escape(_text(record)))
    return IntegrityError.exit_code if damaged else 0


def _records(path: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Number and record of each line; None for a line that is damaged."""
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(LINE_MAX_BYTES):
                number += 1
                if line.strip():
                    yield number, _parse(line)
    except OSError as error:
        raise ConfigError(
            f"the audit log {path} cannot be read: {error.strerror}",
            hint=_missing_hint(path) if isinstance(error, FileNotFoundError) else (),
        ) from error


def _missing_hint(path: str) -> str:
    return f"sandboxrun TYPE ID --audit {shlex.quote(path)}"


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("worker"), str) else None


def _wanted(record: dict[str, Any], worker: str | None, event: str | None) -> bool:
    type_, _, id_ = record["worker"].removesuffix(":h").partition(":")
    mine = worker is None or worker.removesuffix(":h") in (type_, f"{type_}:{id_}")
    return mine and event in (None, record.get("event"))


def _text(record: dict[str, Any]) -> str:
    details = record.get("details")
    shown = details.get("message") if isinstance(details, dict) else None
    if not shown and isinstance(details, dict):
        shown = " ".join(
            f"{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in details.items()
            if value not in (None, [], {}, "")
        )
    known = [record.get(name) for name in ("time", "host", "user", "worker", "version", "event", "outcome")]
    return "  ".join(str(word) for word in (*known, shown) if word)
