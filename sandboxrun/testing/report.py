"""What the tests came to: lines for people, JUnit XML for CI, JSON for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sandboxrun.log import escape
from sandboxrun.testing.coverage import untested
from sandboxrun.testing.generate import GENERATED, as_test
from sandboxrun.testing.runner import LINES_SHOWN, Outcome, Run

FAULTS_SHOWN = 20
LINE_MAX_CHARS = 1000  # of a fault, or of what a worker has printed
_COLOURS = {"ok": "32", "fail": "31", "dim": "2"}


def lines(run: Run, *, colours: bool, verbose: bool) -> Iterator[str]:
    """Of one folder. `verbose`: also those tests that have passed."""

    def paint(kind: str, text: str) -> str:
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if colours else text

    yield f"{run.spec.type}  {paint('dim', escape(shown_path(run.spec.path)))}"
    for outcome in run.outcomes:
        name, millis = escape(outcome.case.name), f"{outcome.seconds * 1000:.1f} ms"
        if outcome.updated:
            yield f"  {paint('ok', 'updated')}  {name}"
            yield from (f"        {_cut(fault)}" for fault in _bounded(outcome.faults, FAULTS_SHOWN))
            continue
        if outcome.passed:
            if verbose:
                yield f"  {paint('ok', 'ok')}    {name}  {paint('dim', millis)}"
            continue
        yield f"  {paint('fail', 'FAIL')}  {name}  {paint('dim', millis)}"
        yield from (f"        {_cut(fault)}" for fault in _bounded(outcome.faults, FAULTS_SHOWN))
        yield from (f"        | {_cut(line)}" for line in last_words(outcome.lines, run.spec.folder))
        if outcome.case.name.startswith(GENERATED):
            yield f"        as a test: {escape(json.dumps(as_test(outcome.case, run.spec), ensure_ascii=False))}"
    if run.error:
        yield f"  {paint('fail', 'FAIL')}  {escape(run.error)}"
        yield from (f"        | {_cut(line)}" for line in last_words(run.lines, run.spec.folder))
    missing = untested(run.spec)
    if missing:
        yield paint("dim", f"  no test names {', '.join(map(escape, missing))}")


def last_words(lines: Sequence[str], folder: str) -> list[str]:
    """LINES_SHOWN of what a worker printed: of a long traceback those lines that name its own files, and the end."""
    if len(lines) <= LINES_SHOWN:
        return list(lines)
    own = {at + step for at, line in enumerate(lines) if f'"{folder}/' in line for step in (0, 1)}
    shown = sorted([*own][-LINES_SHOWN // 2 :]) if own else []
    rest = range(len(lines) - (LINES_SHOWN - len(shown)), len(lines))
    return [lines[at] for at in sorted({*shown, *rest})]


def _cut(text: str) -> str:
    """Of one line: its beginning, without control characters."""
    more = len(text) - LINE_MAX_CHARS
    return escape(text) if more <= 0 else f"{escape(text[:LINE_MAX_CHARS])}… ({more} more characters)"


def _bounded(given: Sequence[str], most: int) -> Iterator[str]:
    yield from given[:most]
    if len(given) > most:
        yield f"… and {len(given) - most} more"


def shown_path(path: str) -> str:
    """From the current folder, if it is in it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative


def summary(runs: Sequence[Run], seconds: float) -> str:
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    failed = sum(not outcome.passed for outcome in outcomes)
    updated = sum(outcome.updated for outcome in outcomes)
    parts = [f"{len(outcomes) - failed - updated} passed"]
    if updated:
        parts.append(f"{updated} updated")
    if failed:
        parts.append(f"{failed} failed")
    broken = sum(bool(run.error) for run in runs)
    if broken:
        parts.append(f"{broken} of {len(runs)} folder{'s' * (len(runs) != 1)} could not be tested")
    return f"{', '.join(parts)} in {seconds:.1f} s"


def as_json(runs: Sequence[Run]) -> list[dict[str, Any]]:
    return [
        {
            "type": run.spec.type,
            "path": run.spec.path,
            "seconds": round(run.seconds, 4),
            "error": run.error or None,
            "untested": list(untested(run.spec)),
            "tests": [_outcome_json(outcome) for outcome in run.outcomes],
        }
        for run in runs
    ]


def _outcome_json(outcome: Outcome) -> Mapping[str, Any]:
    return {
        "name": outcome.case.name,
        "passed": outcome.passed,
        **({"updated": True} if outcome.updated else {}),
        "seconds": round(outcome.seconds, 4),
        "faults": outcome.faults,
        "output": outcome.lines,
    }


def junit(runs: Sequence[Run]) -> str:
    """JUnit XML, a test suite for each folder."""
    from xml.etree import ElementTree as xml

    root = xml.Element("testsuites")
    for run in runs:
        failures = sum(not outcome.passed for outcome in run.outcomes)
        suite = xml.SubElement(
            root,
            "testsuite",
            name=run.spec.type,
            tests=str(len(run.outcomes)),
            failures=str(failures),
            errors=str(int(bool(run.error))),
            time=f"{run.seconds:.3f}",
        )
        for outcome in run.outcomes:
            case = xml.SubElement(
                suite,
                "testcase",
                classname=run.spec.type,
                name=_xml_text(outcome.case.name),
                time=f"{outcome.seconds:.4f}",
            )
            if not outcome.passed:
                fault = xml.SubElement(case, "failure", message=_xml_text(outcome.faults[0]))
                fault.text = _xml_text("\n".join(outcome.faults))
            if outcome.lines:
                xml.SubElement(case, "system-out").text = _xml_text("\n".join(outcome.lines))
        if run.error:
            case = xml.SubElement(suite, "testcase", classname=run.spec.type, name="the worker")
            xml.SubElement(case, "error", message=_xml_text(run.error)).text = _xml_text("\n".join(run.lines))
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _xml_text(text: str) -> str:
    """Without the characters that XML cannot have."""
    return "".join(char if char.isprintable() or char == "\n" else escape(char) for char in text)
