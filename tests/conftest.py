from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
sys.path[:0] = [str(_TESTS / "support"), str(_TESTS)]  # the second for the package `faults`

import machine

machine.leave_behind()

from arena import Arena, Listener, listening
from limit import (  # noqa: F401  # hooks
    pytest_configure,
    pytest_runtest_setup,
    pytest_timeout_cancel_timer,
    pytest_timeout_set_timer,
    pytest_unconfigure,
)
from postgres import Database, Server

from sandboxrun.errors import SandboxError
from sandboxrun.sandbox.compile import features


@pytest.fixture(scope="session", autouse=True)
def _kernel() -> None:
    """A kernel without what is needed skips locally and fails in CI."""
    try:
        features.probe().require()
    except SandboxError as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session", autouse=True)
def _policy() -> None:
    """Unlike the user's, the administrator's policy has a fixed place."""
    if os.path.exists("/etc/xdg/sandboxrun/policy.toml"):
        pytest.fail(
            "/etc/xdg/sandboxrun/policy.toml bounds the workers of the tests, too: move it for as long as they run"
        )


@pytest.fixture(scope="session")
def _postgres_server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def postgres(_postgres_server: Server) -> Iterator[Database]:
    """A new database, on a server that the test may crash, stop and restart."""
    with _postgres_server.database() as database:
        yield database


@pytest.fixture
def arena(request: pytest.FixtureRequest, tmp_path: Path) -> Arena:
    folder = tmp_path / "arena"
    folder.mkdir()
    found = Arena(folder)
    if hasattr(request, "param"):  # in_every_child
        found.env["SANDBOXRUN_TEST_CHILD"] = request.param
    return found


@pytest.fixture
def listener() -> Iterator[Listener]:
    with listening() as found:
        yield found
