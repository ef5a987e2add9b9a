"""Runs inside our sandbox: unpack wheels into the current folder, and compile their modules.

install.py starts it with one variable, UNPACK: JSON with `wheels`, a list of [path, sha256, canonical name], `final`, the path
that the current folder will have, and `files_max` and `unpacked_max`. It prints one line of JSON: {"ok": true}, or the number
of the wheel and the cause. Nobody believes that line alone: the supervisor examines the folder once this process has ended.

Names are checked as they stand in the archive, before anything is stripped from them. RECORD is not read, because the digest of
the whole wheel is pinned. Only Python's own modules are imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import marshal
import os
import re
import stat
import sys
import warnings
import zipfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 1 << 20
_NAME_MAX_BYTES, _SEGMENT_MAX_BYTES, _DEPTH_MAX = 1000, 200, 32  # a .pyc of the longest name fits in 255 bytes
_IGNORED_SCHEMES = ("scripts", "headers", "data")  # of NAME.data/: nothing that a worker imports
_CUSTOMIZE = ("sitecustomize", "usercustomize")
_HASHED_UNCHECKED = (1).to_bytes(4, "little")  # PEP 552: of the flags, only "by hash" is set


class Refused(Exception):
    """A wheel that is not installed; the text completes "WHEEL …"."""


class Unpacking:
    """All wheels of an environment, unpacked one after the other into one folder."""

    def __init__(self, *, files_max: int, unpacked_max: int) -> None:
        self._files_max, self._unpacked_max = files_max, unpacked_max
        self._entries = self._bytes = 0
        self._files: dict[str, str] = {}  # lower case -> as it stands
        self._folders = {""}

    def unpack(self, data: bytes, name: str) -> None:
        """One wheel, of the package with this canonical name. Raises Refused, OSError."""
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            own: set[str] = set()
            infos = archive.infolist()
            self._entries += len(infos)
            if self._entries > self._files_max:
                raise Refused(f"brings the number of files above {self._files_max}")
            for info in infos:
                check_entry(info)
            stem = dist_info(infos, name)
            check_format(archive.read(f"{stem}.dist-info/WHEEL") if _size(infos, f"{stem}.dist-info/WHEEL") else b"")
            for info in infos:
                path = target(info.orig_filename)
                if not path:
                    continue
                if path in own:
                    raise Refused(f"has {path[:80]!r} twice")
                own.add(path)
                self._extract(archive, info, path)

    def files(self) -> Iterator[str]:
        yield from self._files.values()

    def _extract(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> None:
        self._bytes += info.file_size
        if self._bytes > self._unpacked_max:
            raise Refused(f"brings the unpacked size above {self._unpacked_max} bytes")
        other = self._files.setdefault(path.lower(), path)
        if other != path:
            raise Refused(f"has {path[:80]!r}, which differs from {other[:80]!r} in case alone")
        try:
            self._make_folder(os.path.dirname(path))
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with archive.open(info) as source, open(os.open(path, flags, 0o600), "wb") as file:
                written = 0
                while chunk := source.read(_CHUNK_BYTES):
                    written += len(chunk)
                    file.write(chunk)
            if written != info.file_size:
                raise Refused(f"has {path[:80]!r} with another size than it says")
        except FileExistsError:
            if not _is_same(archive, info, path):
                raise Refused(f"has {path[:80]!r}, and so has another wheel, with other contents") from None
        except (IsADirectoryError, NotADirectoryError):
            raise Refused(f"has {path[:80]!r}, which is a file here and a folder there") from None

    def _make_folder(self, folder: str) -> None:
        if folder not in self._folders:
            self._make_folder(os.path.dirname(folder))
            if os.path.lexists(folder):
                raise NotADirectoryError
            os.mkdir(folder)
            self._folders.add(folder)


def _size(infos: list[zipfile.ZipInfo], name: str) -> int:
    return next((info.file_size for info in infos if info.filename == name and info.file_size <= 1 << 16), 0)


def _is_same(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str) -> bool:
    """Whether the file that is there has the same contents: of namespace packages, several wheels have one __init__.py."""
    if not os.path.isfile(path) or os.stat(path).st_size != info.file_size:
        return False
    with archive.open(info) as source, open(path, "rb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            if file.read(len(chunk)) != chunk:
                return False
    return True


def check_entry(info: zipfile.ZipInfo) -> None:
    """Raise Refused for an entry that no wheel needs."""
    raw = info.orig_filename
    shown = f"has the entry {raw[:80]!r}"
    segments = raw.removesuffix("/").split("/")
    if not raw.isprintable() or "\\" in raw or raw != info.filename:
        raise Refused(f"{shown}, whose name has a character that no file of a wheel needs")
    if raw.startswith("/") or re.match("[A-Za-z]:", raw) or not {"", ".", ".."}.isdisjoint(segments):
        raise Refused(f"{shown}, which is no plain relative path")
    if (
        len(raw.encode()) > _NAME_MAX_BYTES
        or len(segments) > _DEPTH_MAX
        or any(len(segment.encode()) > _SEGMENT_MAX_BYTES for segment in segments)
    ):
        raise Refused(f"{shown}, whose name is too long or too deep")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Refused(f"{shown}, which is neither a file nor a folder")
    if info.flag_bits & 0x41:
        raise Refused(f"{shown}, which is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"{shown}, which is compressed in another way than by deflate")
    if raw.endswith("/") and info.file_size:
        raise Refused(f"{shown}, a folder with contents")


def dist_info(infos: list[zipfile.ZipInfo], name: str) -> str:
    """NAME-VERSION of the wheel's one folder NAME-VERSION.dist-info. Raises Refused."""
    tops = {info.filename.partition("/")[0] for info in infos if "/" in info.filename}
    found = sorted(top.removesuffix(".dist-info") for top in tops if top.endswith(".dist-info"))
    if len(found) != 1:
        raise Refused(f"has {len(found)} folders NAME.dist-info: expected one")
    if re.sub(r"[-_.]+", "-", found[0].partition("-")[0]).lower() != name:
        raise Refused(f"has the folder {found[0][:80]!r}.dist-info, which is of another package")
    return found[0]


def check_format(wheel: bytes) -> None:
    """Raise Refused for a wheel of a later format. `wheel`: the file WHEEL."""
    if not re.search(rb"(?m)^Wheel-Version:\s*1\.", wheel):
        raise Refused("is no wheel of format 1")


def target(name: str) -> str:
    """Where a file of a wheel is unpacked to; empty for what has no effect. Raises Refused."""
    if name.endswith("/"):
        return ""
    path = name
    folder, _, inner = name.partition("/")
    if inner and folder.endswith(".data"):  # NAME-VERSION.data
        scheme, _, path = inner.partition("/")
        if scheme in _IGNORED_SCHEMES:
            return ""
        if scheme not in ("purelib", "platlib") or not path:
            raise Refused(f"has {name[:80]!r}, and no wheel may have such a folder")
    top, _, rest = path.partition("/")
    module = top.partition(".")[0]
    if module.lower() == "sandboxrun":
        raise Refused(f"has {path[:80]!r}, which would hide the package sandboxrun")
    if "__pycache__" in path.split("/"):
        return ""  # it could have other code than the source beside it
    if (not rest and path.endswith(".pth")) or module in _CUSTOMIZE:
        return ""  # Python would run it in each process
    return path


def compile_module(path: str, final: str) -> None:
    """Write the .pyc beside a source. One that this Python cannot compile has none, as for pip."""
    with open(path, "rb") as file:
        source = file.read()
    try:
        code = compile(source, final, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return
    folder = os.path.join(os.path.dirname(path), "__pycache__")
    os.makedirs(folder, exist_ok=True)
    stem = os.path.basename(path).removesuffix(".py")
    compiled = os.path.join(folder, f"{stem}.{sys.implementation.cache_tag}.pyc")
    header = importlib.util.MAGIC_NUMBER + _HASHED_UNCHECKED + importlib.util.source_hash(source)
    with open(compiled, "xb") as output:
        output.write(header + marshal.dumps(code))


def main() -> None:
    order = json.loads(os.environ["UNPACK"])
    unpacking = Unpacking(files_max=order["files_max"], unpacked_max=order["unpacked_max"])
    number, cause = 0, ""
    try:
        for number, (path, sha256, name) in enumerate(order["wheels"]):  # noqa: B007 - it is used below
            with open(path, "rb") as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise Refused("has changed while it was read")
            unpacking.unpack(data, name)
        warnings.simplefilter("ignore")
        for path in unpacking.files():
            if path.endswith(".py"):
                compile_module(path, os.path.join(order["final"], path))
    except Refused as error:
        cause = str(error)
    except OSError as error:
        cause = f"cannot be unpacked: {error.strerror}"
    except MemoryError:
        cause = "takes too much memory to be unpacked"
    except Exception as error:  # zipfile raises many kinds for archives that are wrong
        cause = f"is damaged ({type(error).__name__}: {error})"
    print(json.dumps({"wheel": number, "cause": cause[:300]} if cause else {"ok": True}))


if __name__ == "__main__":
    main()
