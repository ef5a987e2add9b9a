"""Wheels with bytes changed anywhere: what is unpacked stays in its folder, and within the limits."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest
from wheels import wheel

from sandboxrun.packages.unpack import Unpacking

NAMES = ("pkg/__init__.py", "pkg/data/a.txt", "evil-1.0.data/purelib/b.py", "evil-1.0.data/scripts/run", "x.pth")
PARTS = (
    b"../",
    b"/",
    b"\0",
    b"\\",
    b"..",
    b"\xff\xff\xff\xff",
    b"PK\x01\x02",
    b"PK\x05\x06",
    b"PK\x03\x04",
    b"\1\0\0\0",
)


def mutated(data: bytes, chance: random.Random) -> bytes:
    changed = bytearray(data)
    directory = data.index(b"PK\x01\x02")
    for _ in range(chance.randint(1, 4)):
        # More often in the directory, where names and sizes are.
        start = chance.choice((0, directory, directory))
        at = chance.randrange(start, len(changed))
        part = chance.choice((bytes([chance.randrange(256)]), chance.choice(PARTS)))
        changed[at : at + len(part)] = part
    return bytes(changed)


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("seed", range(8))
def test_a_changed_wheel_stays_in_its_folder(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    good = wheel("evil", files={name: f"{name}\n" * 5 for name in NAMES}, compressed=bool(seed % 2))
    inside = tmp_path / "a/b/inside"
    whole = 0
    for number in range(150):
        folder = inside / str(number)
        folder.mkdir(parents=True)
        monkeypatch.chdir(folder)
        unpacking = Unpacking(files_max=20, unpacked_max=1 << 16)
        with contextlib.suppress(Exception):  # whichever it is, unpack.py says that the wheel is damaged
            unpacking.unpack(mutated(good.data, chance), "evil")
            whole += 1
        assert all(not os.path.islink(folder / path) for path in tree(folder))
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 1 << 17
    assert tree(tmp_path)[:3] == ["a", "a/b", "a/b/inside"]
    assert all(path.startswith("a/b/inside") for path in tree(tmp_path)[2:])
    assert whole < 150
