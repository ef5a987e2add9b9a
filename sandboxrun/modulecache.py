"""The compiled modules that a start imports, in one file: to open two hundred .pyc files takes several milliseconds.

The file is a copy of those .pyc files, beside this package's own: who may write it may write those. A module is taken from it
if Python would look for it there first, and if its source has the time and the size that the file says. Every other module is
imported as usual, and so are all of them if the file is missing or damaged.

Both processes of a run use it, the worker's before it confines itself. So this imports only what Python has loaded already.
"""

import _frozen_importlib_external as _external  # importlib.machinery without what that imports
import _imp
import marshal
import os
import sys
from _frozen_importlib import ModuleSpec as _ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType

    # The folder on Python's path, the source in it and its .pyc file; time (ns) and size of the source.
    Stamp = tuple[str, str, str, int, int]
    # Where the code begins in the file, and its length.
    Entry = tuple[Stamp, int, int]

_NAME = "all-modules.py"  # no module can have this name, so no .pyc has the one that follows from it
_FORMAT = b"sandboxrun 1\n" + _external.MAGIC_NUMBER
_PREFIX = len(_FORMAT) + 4  # bytes before the index: its length comes last
_INIT = "/__init__.py"


class ModuleCache:
    """A finder for sys.meta_path. It never raises: what it has not is left to Python's own finder, the next one."""

    def __init__(self, file: str) -> None:
        self.file = file
        self._fd = -1
        self.index: dict[str, Entry] = {}
        self._first = 0  # where the first code begins
        self.taken: list[str] = []  # names
        self.missed: list[str] = []
        self.is_damaged = False
        try:
            self._fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            prefix = os.pread(self._fd, _PREFIX, 0)
            if prefix.startswith(_FORMAT):
                length = int.from_bytes(prefix[len(_FORMAT) :], "little")
                self.index, self._first = dict(marshal.loads(os.pread(self._fd, length, _PREFIX))), _PREFIX + length
        except Exception:  # there is none; or marshal raises whatever it comes across
            pass

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        try:
            (folder, source, compiled, time, size), _, _ = self.index[name]
            found = os.stat(source)
            if found.st_mtime_ns == time and found.st_size == size and _is_first(name, folder, path):
                # As importlib.util.spec_from_file_location makes it, which would look for what is known.
                is_package = source.endswith(_INIT)
                spec = _ModuleSpec(name, _Loader(name, source, self), origin=source, is_package=is_package)
                spec.has_location, spec.cached = True, compiled
                if is_package:
                    spec.submodule_search_locations = [source.removesuffix(_INIT)]
                self.taken.append(name)
                return spec
        except (TypeError, ValueError):  # an index of something else
            self.is_damaged = True
        except Exception:  # no such entry, no such source
            pass
        self.missed.append(name)
        return None

    def code(self, name: str, source: str) -> "CodeType | None":
        """None if the file is damaged, or closed."""
        if self._fd < 0:
            return None
        try:
            _, start, length = self.index[name]
            code: CodeType = marshal.loads(os.pread(self._fd, length, self._first + start))
            # As Python does for a .pyc; TypeError if it is no code.
            _imp._fix_co_filename(code, source)  # type: ignore[attr-defined]
            return code
        except Exception:
            self.is_damaged = True
            return None

    def close(self) -> None:
        """From now on nothing is taken from the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class _Loader(_external.SourceFileLoader):
    """Python's own loader of a source, except for where the code comes from."""

    def __init__(self, name: str, source: str, cache: ModuleCache) -> None:
        super().__init__(name, source)
        self._cache = cache

    def get_code(self, fullname: str) -> "CodeType | None":
        return self._cache.code(fullname, self.path) or super().get_code(fullname)


def _is_first(name: str, place: str, path: "Sequence[str] | None") -> bool:
    """Whether Python would find the module in the folder `place`, because it is in none before that."""
    for folder in sys.path if path is None else path:
        if folder == place:
            return True
        finder = sys.path_importer_cache[folder]
        if finder is not None and finder.find_spec(name) is not None:
            return False
    return False


_installed: ModuleCache | None = None


def install() -> None:
    """Until `close`, modules are taken from the file. With PYTHONPYCACHEPREFIX the .pyc files are elsewhere: then not."""
    global _installed
    try:
        if sys.pycache_prefix is None and _installed is None:
            place = sys.meta_path.index(_external.PathFinder)  # other finders stay in front of it
            cache = ModuleCache(_external.cache_from_source(os.path.join(os.path.dirname(__file__), _NAME)))
            sys.meta_path.insert(place, cache)
            _installed = cache
    except (NotImplementedError, ValueError):
        pass  # this Python keeps nothing that it compiles, or looks for nothing on its path


def close() -> None:
    """Import as usual again, and write the file again if a module was missing that is compiled by now."""
    global _installed
    cache, _installed = _installed, None
    if cache is None:
        return
    sys.meta_path.remove(cache)
    cache.close()
    is_stale = bool(cache.missed) or cache.is_damaged
    if is_stale and not sys.dont_write_bytecode and os.access(os.path.dirname(cache.file), os.W_OK):
        try:
            _renew(cache)
        except Exception:  # such as a full disk
            pass
    cache.index = {}


def _renew(cache: ModuleCache) -> None:
    """Write what was missed, and what is in the file by now: another process may have written it meanwhile."""
    names = (*cache.missed, *cache.taken) if cache.is_damaged else cache.missed
    found = {name: compiled for name in names if (compiled := _compiled(_source(name))) is not None}
    if not cache.is_damaged:
        if all(name in cache.index and cache.index[name][0] == stamp for name, (stamp, _) in found.items()):
            return
        latest = ModuleCache(cache.file)
        latest.close()
        for name, ((_, source, *_), *_) in latest.index.items():
            if name not in found and (compiled := _compiled(source)) is not None:
                found[name] = compiled
    _write(cache.file, found)


def _write(file: str, found: "dict[str, tuple[Stamp, bytes]]") -> None:
    from sandboxrun.files import write_whole

    index: dict[str, Entry] = {}
    start = 0
    for name, (stamp, code) in found.items():
        index[name] = (stamp, start, len(code))
        start += len(code)
    data = marshal.dumps(index)
    length = len(data).to_bytes(_PREFIX - len(_FORMAT), "little")
    codes = (code for _, code in found.values())
    mode = os.stat(__file__).st_mode & 0o666 | 0o200  # as Python takes it for a .pyc
    write_whole(file, b"".join((_FORMAT, length, data, *codes)), mode=mode, sync=False)


def _source(name: str) -> str | None:
    """The source of a module, if Python's own finder has found it."""
    spec = sys.modules[name].__spec__ if name in sys.modules else None
    is_usual = spec is not None and type(spec.loader) in (_external.SourceFileLoader, _Loader)
    return spec.origin if spec is not None and is_usual else None


def _compiled(source: str | None) -> "tuple[Stamp, bytes] | None":
    """The code of a source, from its .pyc file, if Python would take that."""
    if source is None:
        return None
    compiled = _external.cache_from_source(source)
    try:
        found = os.stat(source)
        with open(compiled, "rb") as file:
            data = file.read()
    except OSError:
        return None
    # PEP 552: magic number, flags (0: checked by time), time and size of the source.
    words = (0, int(found.st_mtime) & 0xFFFFFFFF, found.st_size & 0xFFFFFFFF)
    header = _external.MAGIC_NUMBER + b"".join(word.to_bytes(4, "little") for word in words)
    if not data.startswith(header):
        return None
    folder = os.path.dirname(source.removesuffix(_INIT))
    return (folder, source, compiled, found.st_mtime_ns, found.st_size), data[len(header) :]
