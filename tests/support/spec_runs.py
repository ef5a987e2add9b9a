"""Runs the tests of a folder's spec.json against other code than the folder's."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from sandboxrun.redis import embedded
from sandboxrun.spec import model
from sandboxrun.testing.generate import AGAIN, GENERATED, generated
from sandboxrun.testing.runner import Run, run


def run_tests(folder: Path, source: str, beside: Sequence[Path] = (), *, with_generated: bool = True) -> Run:
    """The written tests and the generated ones, with this worker.py. `beside`: folders of services that it calls."""
    with tempfile.TemporaryDirectory(prefix="spec-") as home, embedded.server() as url, own_home(f"{home}/.home"):
        for other in beside:
            (Path(home) / other.name).mkdir()
            shutil.copy(other / model.NAME, Path(home) / other.name)
        here = Path(home) / folder.name
        here.mkdir(exist_ok=True)
        (here / "worker.py").write_text(source)
        shutil.copy(folder / model.NAME, here)
        spec = model.load(str(here))
        return run(spec, [*spec.cases, *(generated(spec) if with_generated else ())], {}, url=url)


@contextlib.contextmanager
def own_home(path: str) -> Iterator[None]:
    """A home folder for the workers, instead of that of whoever runs the tests."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    os.makedirs(path)
    os.environ["HOME"] = path
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def catchers(done: Run) -> tuple[int, int]:
    """How many of the written tests have failed, and of the generated ones. A worker that does not start fails one."""
    failed = [outcome.case.name.startswith((GENERATED, AGAIN)) for outcome in done.outcomes if not outcome.passed]
    return failed.count(False) + bool(done.error), failed.count(True)


def failures(done: Run) -> dict[str, list[str]]:
    """What was not as expected, by test."""
    assert not done.error, done.error
    return {outcome.case.name: outcome.faults for outcome in done.outcomes if not outcome.passed}
