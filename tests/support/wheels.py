"""Wheels made in a test: good ones, and those that nobody should install."""

from __future__ import annotations

import hashlib
import io
import stat
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_DATE = (2020, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Wheel:
    """The bytes of a wheel and its file name."""

    name: str
    version: str
    filename: str
    data: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def requirement(self) -> str:
        """A line of requirements.lock."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"

    def write(self, folder: Path) -> Path:
        path = folder / self.filename
        path.write_bytes(self.data)
        return path


def wheel(
    name: str,
    version: str = "1.0",
    files: Mapping[str, str | bytes] | None = None,
    *,
    tag: str = "py3-none-any",
    dist_info: str | None = None,
    wheel_version: str = "1.0",
    symlinks: Mapping[str, str] | None = None,
    extra: Sequence[tuple[str, bytes]] = (),
    compressed: bool = True,
) -> Wheel:
    """A wheel with a module of the package's name, unless `files` says otherwise.

    `dist_info`: the folder's name, instead of NAME-VERSION.dist-info; empty for none. `symlinks`: name -> target.
    `extra`: entries that are written as they stand, also if the name is there already.
    """
    module = name.replace("-", "_")
    found = {f"{module}.py": f"VERSION = {version!r}\n"} if files is None else dict(files)
    folder = f"{module}-{version}.dist-info" if dist_info is None else dist_info
    if folder:
        found[f"{folder}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        found[f"{folder}/WHEEL"] = f"Wheel-Version: {wheel_version}\nRoot-Is-Purelib: true\nTag: {tag}\n"
        found[f"{folder}/RECORD"] = "".join(f"{path},,\n" for path in found)
    buffer = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", kind) as archive:
        warnings.simplefilter("ignore")  # of a name that is there already
        for path, text in found.items():
            archive.writestr(_entry(path, stat.S_IFREG | 0o644, kind), text)
        for path, target in (symlinks or {}).items():
            archive.writestr(_entry(path, stat.S_IFLNK | 0o777, kind), target)
        for path, data in extra:
            archive.writestr(_entry(path, 0, kind), data)
    return Wheel(name, version, f"{module}-{version}-{tag}.whl", buffer.getvalue())


def _entry(path: str, mode: int, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x", _DATE)
    info.filename = info.orig_filename = path  # ZipInfo would cut a name at a NUL
    info.external_attr = mode << 16
    info.compress_type = kind
    return info


def changed(old: Wheel, data: bytes) -> Wheel:
    """The same wheel with other bytes."""
    return Wheel(old.name, old.version, old.filename, data)


def replaced(old: Wheel, name: bytes, other: bytes) -> Wheel:
    """The same wheel with a part of its bytes replaced, in the entry itself and in the directory: a file name, for instance."""
    assert len(name) == len(other)
    assert name in old.data
    return changed(old, old.data.replace(name, other))


def with_size(old: Wheel, path: str, size: int) -> Wheel:
    """The same wheel, whose directory says that a file has another unpacked size (APPNOTE.TXT 4.3.12)."""
    data = bytearray(old.data)
    start = 0
    while (start := data.index(b"PK\x01\x02", start)) >= 0:
        length = int.from_bytes(data[start + 28 : start + 30], "little")
        if bytes(data[start + 46 : start + 46 + length]) == path.encode():
            data[start + 24 : start + 28] = size.to_bytes(4, "little")
            return changed(old, bytes(data))
        start += 46 + length
    raise AssertionError(path)


def encrypted(old: Wheel) -> Wheel:
    """The same wheel, whose entries say that they are encrypted."""
    data = bytearray(old.data)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = 0
        while (start := data.find(signature, start)) >= 0:
            data[start + offset] |= 1
            start += 4
    return changed(old, bytes(data))


def lock_text(*wheels: Wheel) -> bytes:
    """A requirements.lock."""
    return "".join(each.requirement for each in wheels).encode()


def pylock_text(*wheels: tuple[Wheel, str]) -> bytes:
    """A pylock.toml of wheels and their URLs."""
    text = 'lock-version = "1.0"\ncreated-by = "a test"\n'
    for each, url in wheels:
        text += f'\n[[packages]]\nname = "{each.name}"\nversion = "{each.version}"\n'
        text += f'wheels = [{{ url = "{url}", hashes = {{ sha256 = "{each.sha256}" }} }}]\n'
    return text.encode()
