"""sandboxrun test."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time

from sandboxrun.cli.parser import Parser
from sandboxrun.errors import SpecError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from sandboxrun.spec.model import Case, Spec
    from sandboxrun.testing.runner import Run

JOBS_MAX = 64
FAILED = 1
_EPILOG = """\
examples:
  sandboxrun test greeter                    the tests in greeter/spec.json, against greeter/worker.py
  sandboxrun test order price -k 'two items' those tests of two workers whose name has these words
  sandboxrun test greeter --generate         also requests at and beyond the bounds of the schema
  sandboxrun test greeter --update           write into spec.json what failing tests should expect; read the difference
  sandboxrun test plugins/* --junit out.xml   for CI

Each folder has a Redis of its own, and its worker runs in the sandbox with the grants of its spec. A service that the
worker calls is answered by the tests in the spec of that service, in the folder beside.

exit codes: 0 all passed; 1 a test failed; 65 a spec.json is wrong; else that of a worker that does not start"""


def main(args: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(args)
    if not 1 <= options.jobs <= JOBS_MAX:
        raise UsageError(f"--jobs is {options.jobs}: expected 1 to {JOBS_MAX}")

    from sandboxrun.spec import model

    specs = [model.load(_path(folder)) for folder in dict.fromkeys(options.folders)]
    _check_types(specs)
    chosen = [_chosen(spec, options) for spec in specs]
    if not any(chosen):
        _raise_none(specs, options)
    began = time.perf_counter()
    runs = _run_all(specs, chosen, options)
    seconds = time.perf_counter() - began
    if options.update:
        from sandboxrun.testing.update import update

        for run in runs:
            update(run)
    return _report(runs, seconds, options)


def _parser() -> Parser:
    parser = Parser(
        prog="sandboxrun test",
        description="Run the tests of workers' spec.json: the real worker, in the sandbox, on a Redis of its own.",
        epilog=_EPILOG,
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", help="with worker.py and spec.json")
    parser.add_argument("-k", metavar="WORDS", default="", help="only tests whose name has these words")
    parser.add_argument("-v", "--verbose", action="store_true", help="print passed tests too")
    parser.add_argument("--update", action="store_true", help="write into spec.json what failing tests should expect")
    parser.add_argument("--generate", action="store_true", help="also run requests that are made from the schema")
    parser.add_argument("--junit", metavar="FILE", help="write the results as JUnit XML")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--jobs",
        metavar="N",
        type=int,
        default=min(4, os.cpu_count() or 1),
        help="folders at once (default: %(default)s)",
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="an empty database for the tests, as in redis://127.0.0.1:6379/9, which are run one after another",
    )
    parser.add_argument("--policy", metavar="FILE", help="a policy file instead of the user's policy.toml")
    return parser


def _path(folder: str) -> str:
    """The file of a folder. Raises SpecError, UsageError."""
    from sandboxrun.spec import model

    if os.path.basename(folder) == model.NAME:
        folder = os.path.dirname(folder) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"{folder[:200]} is not a folder: expected one with worker.py and {model.NAME}")
    for name in ("worker.py", model.NAME):
        if not os.path.isfile(os.path.join(folder, name)):
            raise SpecError(f"{folder[:200]} has no {name}")
    return os.path.join(folder, model.NAME)


def _check_types(specs: Sequence[Spec]) -> None:
    """Raise SpecError for a type that is not the folder's name, by which others look for it and dev runs it."""
    from sandboxrun.dev.target import type_from

    for spec in specs:
        name = type_from(os.path.basename(spec.folder))
        if spec.type not in (name, f"{name}-worker"):
            raise SpecError(f"{spec.path} is of the type {spec.type}: expected {name}, as its folder is called")
    by_type = {spec.type: spec for spec in specs}
    for spec in specs:
        if by_type[spec.type] is not spec:
            raise SpecError(f"{spec.path} and {by_type[spec.type].path} are both of the type {spec.type}")


def _chosen(spec: Spec, options: argparse.Namespace) -> list[Case]:
    from sandboxrun.testing.generate import generated

    cases = [*spec.cases, *(generated(spec) if options.generate else ())]
    return [case for case in cases if options.k in case.name]


def _raise_none(specs: Sequence[Spec], options: argparse.Namespace) -> None:
    if options.k:
        raise UsageError(f"no test has a name with {options.k[:80]!r}")
    raise SpecError(f"{specs[0].path} has no tests: expected them in its list tests, each with a name and a request")


def _run_all(specs: Sequence[Spec], chosen: Sequence[list[Case]], options: argparse.Namespace) -> list[Run]:
    from concurrent.futures import ThreadPoolExecutor

    from sandboxrun.testing.runner import run

    stop = threading.Event()
    signal.signal(signal.SIGTERM, _interrupt)
    given = {spec.type: spec for spec in specs}
    more = (f"--policy={options.policy}",) if options.policy else ()

    def one(spec: Spec, cases: list[Case]) -> Run:
        with _redis(options.redis) as url:
            return run(spec, cases, given, url=url, options=more, stop=stop)

    # The threads live until all is done: each worker ends with the thread that has started it.
    with ThreadPoolExecutor(1 if options.redis else options.jobs) as pool:
        pairs = [(spec, cases) for spec, cases in zip(specs, chosen, strict=True) if cases]
        try:
            return list(pool.map(lambda pair: one(*pair), pairs))
        except KeyboardInterrupt:
            stop.set()
            raise


@contextlib.contextmanager
def _redis(url: str | None) -> Iterator[str]:
    """The URL of an empty database, until the end of the block. Raises StoreError."""
    if url is None:
        from sandboxrun.redis import embedded

        with embedded.server() as url:
            yield url
    else:
        from sandboxrun.testing.database import borrowed

        with borrowed(url):
            yield url


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _report(runs: Sequence[Run], seconds: float, options: argparse.Namespace) -> int:
    from sandboxrun.testing import report

    if options.junit:
        try:
            with open(options.junit, "w", encoding="utf-8") as file:
                file.write(report.junit(runs))
        except OSError as error:
            raise UsageError(f"--junit {options.junit[:200]} cannot be written: {error.strerror}") from None
    if options.json:
        print(json.dumps(report.as_json(runs)))
    else:
        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        for run in runs:
            for line in report.lines(run, colours=colours, verbose=options.verbose):
                print(line)
        print(report.summary(runs, seconds))
    if all(run.passed for run in runs):
        return 0
    return next((run.code for run in runs if run.error), FAILED)
