"""Compiled filters that are kept: none that somebody else put there, or that is of another policy, is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxrun.digests import sealed, unsealed
from sandboxrun.files import Kept
from sandboxrun.sandbox.compile import filters
from sandboxrun.sandbox.compile.filters import program
from sandboxrun.sandbox.compile.grants import Grants


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(str(tmp_path / "filters"), str(tmp_path / "state" / "key"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Grants]:
    """What was compiled, in this order."""
    done: list[Grants] = []
    compile_ = filters._compile

    def noted(grants: Grants) -> bytes:
        done.append(grants)
        return compile_(grants)

    monkeypatch.setattr(filters, "_compile", noted)
    return done


def test_a_filter_is_compiled_once_for_each_policy(kept: Kept, compiled: list[Grants]) -> None:
    plain, listening = program(Grants(), kept), program(Grants(listen=True), kept)
    assert plain != listening
    assert (program(Grants(), kept), program(Grants(listen=True), kept)) == (plain, listening)
    assert compiled == [Grants(), Grants(listen=True)]
    assert Path(kept.key).stat().st_mode & 0o777 == 0o600


def test_a_filter_that_was_changed_swapped_or_sealed_by_another_is_compiled_anew(
    kept: Kept, compiled: list[Grants], tmp_path: Path
) -> None:
    plain, running = program(Grants(), kept), program(Grants(run=True), kept)
    one, other = sorted(Path(kept.folder).iterdir())
    first, second = one.read_bytes(), other.read_bytes()
    elsewhere = Kept(str(tmp_path / "elsewhere"), str(tmp_path / "other key"))
    program(Grants(), elsewhere)
    foreign = {path.name: path.read_bytes() for path in Path(elsewhere.folder).iterdir()}
    for data in (
        first[:-1] + bytes([first[-1] ^ 1]),  # one bit of the program
        bytes([first[0] ^ 1]) + first[1:],  # one bit of its seal
        second,  # whole, but another policy's
        first[:40],
        b"",
        foreign.get(one.name, b"\0" * len(first)),  # of another key
    ):
        one.write_bytes(data)
        before = len(compiled)
        assert {program(Grants(), kept), program(Grants(run=True), kept)} == {plain, running}
        assert len(compiled) == before + 1, data[:8]
        assert one.read_bytes() == first


def test_a_key_that_others_can_read_is_not_used(kept: Kept, compiled: list[Grants]) -> None:
    program(Grants(), kept)
    Path(kept.key).chmod(0o644)
    program(Grants(), kept)
    assert compiled == [Grants(), Grants()]


def test_a_seal_holds_for_one_name_and_one_key() -> None:
    key, found = bytes(32), sealed(b"data", bytes(32), "name")
    assert unsealed(found, key, "name") == b"data"
    for wrong in ((found, key, "nam"), (found, bytes([1] * 32), "name"), (found[:-1], key, "name"), (b"", key, "name")):
        assert unsealed(*wrong) is None
