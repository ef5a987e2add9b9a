"""What sandbox/child/ repeats, because it imports nothing outside of itself, is as it is elsewhere."""

from __future__ import annotations

from sandboxrun.config import targets
from sandboxrun.sandbox.child import denials, programs, redis_refusals
from sandboxrun.sandbox.compile import policy
from sandboxrun.sandbox.compile.landlock import Access


def test_the_commands_of_redis_that_are_never_granted() -> None:
    assert redis_refusals._NEVER == targets._REDIS_NEVER
    assert redis_refusals._PATTERN.pattern == targets._REDIS_PATTERN


def test_the_folders_of_programs() -> None:
    assert programs._FOLDERS == targets.PROGRAM_FOLDERS


def test_the_folders_of_the_machine() -> None:
    assert {"/nix/store", "/gnu/store", *denials._SYSTEM} == set(policy._SYSTEM_CODE)


def test_the_rights_of_landlock() -> None:
    assert denials._RIGHTS == {
        "read": Access.READ_FILE | Access.READ_DIR,
        "write": Access.WRITE_FILE,
        "run": Access.EXECUTE,
    }
