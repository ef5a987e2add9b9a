"""Write into spec.json what failing tests should expect, where the worker is right and the test is not."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from typing import Any

from sandboxrun.errors import SpecError
from sandboxrun.files import write_whole
from sandboxrun.spec import compare, match
from sandboxrun.spec.model import OK, Case, load
from sandboxrun.testing.http import PLACEHOLDER
from sandboxrun.testing.runner import Outcome, Run, Seen

WIDTH = 100
FAILED = 500


def update(run: Run) -> None:
    """Change the file, and note in the outcomes which tests were changed. What fits stays as it is written, matchers too.
    A request that failed is no example of what to expect. Raises SpecError."""
    tests = [dict(each) for each in run.spec.raw.get("tests", ())]
    by_name = {each["name"]: each for each in tests}
    changed: list[Outcome] = []
    for outcome in run.outcomes:
        given = by_name.get(outcome.case.name)
        if given is None or outcome.passed or outcome.seen is None or outcome.seen.reply is None:
            continue
        code = outcome.seen.reply.get("code", FAILED)
        if code >= FAILED and code != outcome.case.code:
            outcome.faults.append(f"not updated, because the reply has code {code}")
            continue
        _correct(given, outcome, outcome.seen)
        changed.append(outcome)
    if not changed:
        return
    if load(run.spec.path).raw != run.spec.raw:
        raise SpecError(f"{run.spec.path} was changed while its tests ran: nothing was updated")
    origin = run.http.origin if run.http is not None else PLACEHOLDER
    write(run.spec.path, json.loads(json.dumps({**run.spec.raw, "tests": tests}).replace(origin, PLACEHOLDER)))
    for outcome in changed:
        outcome.updated = True


def _correct(given: dict[str, Any], outcome: Outcome, seen: Seen) -> None:
    case = outcome.case
    assert seen.reply is not None
    reply = _reply(given.get("reply", {}), seen.reply, case)
    after = _after(given.get("after", {}), seen, case)
    for name, value in (("reply", reply), ("after", after)):
        if value:
            given[name] = value
        else:
            given.pop(name, None)


def _reply(written: Mapping[str, Any], actual: Mapping[str, Any], case: Case) -> dict[str, Any]:
    code = actual.get("code")
    found = {} if code == OK else {"code": code}
    if code != case.code or not set(written) - {"code"}:
        return found | recorded_reply(actual)
    for name, value in written.items():
        if name == "code" or match.literal(name) not in actual:
            continue
        got = actual[match.literal(name)]
        found[name] = match.escaped(got) if any(match.differences(value, got, "", is_open=True)) else value
    return found


def recorded_reply(actual: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a reply, without its code; of an error the message."""
    if actual.get("code") != OK:
        err = actual.get("err")
        return {"err": {"message": match.escaped(err.get("message"))}} if isinstance(err, dict) else {}
    return {str(match.escaped(name)): match.escaped(value) for name, value in actual.items() if name != "code"}


def _after(written: Mapping[str, Any], seen: Seen, case: Case) -> dict[str, Any]:
    found = {}
    for key, value in written.items():
        if key not in seen.changed:  # it was named, and nothing has happened to it
            if key in case.before or value is None:
                found[key] = value
            continue
        actual = seen.changed[key]
        fits = not any(compare.differences(key, case.after[key], actual, 1.0))
        found[key] = value if fits else recorded_key(key, seen)
    for key in sorted(seen.changed):
        if key not in found:
            found[key] = recorded_key(key, seen)
    return found


def recorded_key(key: str, seen: Seen) -> Any:
    """The form in which `after` has a key that a request has changed."""
    actual = seen.changed[key]
    return None if actual is None else compare.as_json(key, actual)


def write(path: str, raw: Mapping[str, Any]) -> None:
    """Also through a symlink; the file keeps its mode. Raises SpecError."""
    path = os.path.realpath(path)
    try:
        mode = stat.S_IMODE(os.stat(path).st_mode) if os.path.exists(path) else 0o644
        write_whole(path, f"{text(raw)}\n".encode(), mode=mode)
    except OSError as error:
        raise SpecError(f"{path} cannot be written: {error.strerror}") from None


def text(value: Any, indent: str = "", room: int = WIDTH) -> str:
    """JSON with what is short on one line."""
    flat = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(flat) <= room or not isinstance(value, dict | list) or not value:
        return flat
    inner = indent + "  "
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + text(item, inner) for item in value) + f"\n{indent}]"
    pairs = (f"{inner}{json.dumps(name, ensure_ascii=False)}: " + text(item, inner) for name, item in value.items())
    return "{\n" + ",\n".join(pairs) + f"\n{indent}}}"
