"""From verified wheels to an environment: unpacked and compiled by a child in our sandbox, examined here, moved into place.

The child reads the wheels and writes a staging folder, and has nothing else: no network, no other process, and no supervisor
that would serve a trapped call. Once it has ended, this process walks the folder without following a symlink and believes only
what it finds there. An environment is used only if its record is sealed, which comes last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import time
from collections.abc import Sequence

from sandboxrun.config.limits import Limits
from sandboxrun.config.permissions import Kind, NetTarget, Permissions
from sandboxrun.errors import IntegrityError, ScriptError
from sandboxrun.files import Kept
from sandboxrun.log import escape
from sandboxrun.packages import seal, verify
from sandboxrun.packages.lock import Lock
from sandboxrun.packages.options import RAISED_BY, Options
from sandboxrun.packages.seal import FOLDER_MODE, Seal
from sandboxrun.packages.verify import Tree
from sandboxrun.packages.wheels import Wheel
from sandboxrun.records import record
from sandboxrun.sandbox.compile import features, policy
from sandboxrun.sandbox.supervisor.child import Child, Confinement, Script, this_interpreter
from sandboxrun.sandbox.supervisor.scratch import folder_size

SECONDS = 600  # for the child, and of its CPU time; thousands of modules take half a minute to be compiled
MEMORY_BYTES = 2 << 30
_KEY = "sandboxrun-install:1:h"
_PROGRAM = os.path.join(os.path.dirname(__file__), "unpack.py")
_LOOK_MS = 100
_OUTPUT_MAX_BYTES = 64 << 10
_BLOCK_BYTES = 4096  # that a file takes at least


@record
class Destination:
    """The folders of one installation. `staging`: a private folder of this install, on the file system of `final`."""

    cache: str
    key: str
    name: str
    staging: str

    @property
    def final(self) -> str:
        return os.path.join(seal.folder_of(self.cache), self.name)


def install(lock: Lock, wheels: Sequence[Wheel], destination: Destination, options: Options) -> None:
    """Make the environment. If it raises, nothing is installed: ScriptError, IntegrityError, SandboxError, OSError."""
    tree = os.path.join(destination.staging, "tree")
    os.mkdir(tree, 0o700)
    _unpack(lock, wheels, tree, destination, options)
    try:
        found = verify.scan(tree, finish=True)
        _check(found, options)
    except IntegrityError as error:
        raise IntegrityError(f"the packages of {lock.name} are not installed: {error}") from error
    with contextlib.suppress(FileNotFoundError):  # a folder without a seal, or damaged
        os.chmod(destination.final, 0o700)  # which moving it to another folder takes
        os.rename(destination.final, os.path.join(destination.staging, "old"))
    os.rename(tree, destination.final)
    os.chmod(destination.final, FOLDER_MODE)
    verify.keep_listing(destination.final, found)
    seal.write(destination.cache, destination.key, destination.name, _seal(lock, wheels, destination, found))


def _seal(lock: Lock, wheels: Sequence[Wheel], destination: Destination, found: Tree) -> Seal:
    return Seal(
        lock=lock.name,
        lock_sha256=lock.sha256,
        packages=tuple((wheel.package.name, wheel.package.version) for wheel in wheels),
        files=len(found.files),
        bytes=found.bytes,
        source_files=len(found.sources),
        source_bytes=sum(file.size for file in found.sources),
        packed_bytes=sum(os.stat(wheel.path).st_size for wheel in wheels),
        listing=hashlib.sha256(found.listing).hexdigest(),
        content=found.content,
        boot=seal.boot_id(),
        folders=found.folders,
        stamp=seal.stamp_of(destination.final, found.folders),
    )


def _check(found: Tree, options: Options) -> None:
    """Raise IntegrityError for what unpack.py lets nobody install: a wheel may have taken the child over."""
    sources = found.sources
    compiled = len(found.files) - len(sources)
    size = sum(file.size for file in sources)
    if len(sources) > options.files_max or compiled > len(sources) or size > options.unpacked_max:
        raise IntegrityError(f"{len(found.files)} files with {found.bytes} bytes are more than the limits allow")
    lower: dict[str, str] = {}
    for file in found.files:
        other = lower.setdefault(file.path.lower(), file.path)
        if other != file.path:
            raise IntegrityError(f"{file.path[:80]!r} differs from {other[:80]!r} in case alone")
    for path in (*(file.path for file in found.files), *found.folders):
        top = path.partition("/")[0]
        module = top.partition(".")[0].lower()
        if module in ("sandboxrun", "sitecustomize", "usercustomize") or (path == top and path.endswith(".pth")):
            raise IntegrityError(f"{top[:80]!r} is no name for a package")


def _unpack(lock: Lock, wheels: Sequence[Wheel], tree: str, destination: Destination, options: Options) -> None:
    """Run the child. Raises SandboxrunError."""
    kernel = features.probe()
    kernel.require(options.degraded)
    confinement = _confinement(wheels, tree, destination, options)
    child = Child(_KEY, kernel)
    try:
        child.stdin.close()
        child.check_supervision()
        # Nobody serves the listener: without it the kernel answers each trapped call, such as connect, with ENOSYS.
        os.close(child.confine(confinement))
        child.go()
        child.hang_up()
        output, because = _watch(child, tree, options)
        if because:
            raise ScriptError(f"the wheels of {lock.name} are not installed: {because}")
        code = child.wait()
    finally:
        child.close()  # which kills it if it has not ended
    if code != 0:
        raise ScriptError(f"the wheels of {lock.name} are not installed: the process that unpacks them {_ending(code)}")
    _check_answer(output, wheels)


def _ending(code: int) -> str:
    return f"was ended by signal {code - 128}" if code > 128 else f"failed with exit code {code}"


def _confinement(wheels: Sequence[Wheel], tree: str, destination: Destination, options: Options) -> Confinement:
    paths = [os.path.realpath(wheel.path) for wheel in wheels]  # ~/.cache may be a symlink
    order = {
        "wheels": [(path, wheel.sha256, wheel.package.name) for path, wheel in zip(paths, wheels, strict=True)],
        "final": destination.final,
        "files_max": options.files_max,
        "unpacked_max": options.unpacked_max,
    }
    interpreter = this_interpreter()
    built = policy.build(
        Permissions({str(Kind.READ): tuple(paths)}),
        key=_KEY,
        interpreter=interpreter,
        scratch=tree,
        local_source=None,
        redis=NetTarget.parse("127.0.0.1:1"),  # required by the policy; nothing connects to it
        protected=(),
        limits=Limits(
            memory=MEMORY_BYTES, threads=1, files=64, scratch=options.unpacked_max, cpu=SECONDS, time=SECONDS
        ),
    )
    with open(_PROGRAM, "rb") as file:
        source = file.read()
    return Confinement(
        key=_KEY,
        policy=built,
        script=Script(source, _PROGRAM, None, None, is_file=True),
        interpreter=interpreter,
        scratch=tree,
        env={"LANG": "C.UTF-8", "HOME": tree, "UNPACK": json.dumps(order)},
        kept=Kept(os.path.join(destination.cache, "filters"), destination.key),
    )


def _watch(child: Child, tree: str, options: Options) -> tuple[bytes, str]:
    """What the child has printed, once it has ended; or why it is to be killed."""
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    said = {file.fileno(): bytearray() for file in child.output}
    for fd in said:
        os.set_blocking(fd, False)
        poll.register(fd, select.POLLIN)
    deadline = time.monotonic() + SECONDS
    look = 0.0
    while True:
        ready = [fd for fd, _ in poll.poll(_LOOK_MS)]
        for fd in said:
            if fd in ready and not _read(fd, said[fd]):
                poll.unregister(fd)
        if child.pidfd in ready:
            for fd in said:
                _read(fd, said[fd])
            return bytes(said[child.output[0].fileno()]), _too_much(tree, options)
        now = time.monotonic()
        if now > deadline:
            return b"", f"they were not unpacked within {SECONDS} s"
        if now > look:
            because = _too_much(tree, options)
            if because:
                return b"", because
            look = now + _LOOK_MS / 1000


def _too_much(tree: str, options: Options) -> str:
    # A source and its compiled module, and what each takes on disk at least.
    enough = 2 * (options.unpacked_max + options.files_max * 2 * _BLOCK_BYTES)
    if folder_size(tree, enough, options.files_max * 4) <= enough:
        return ""
    return f"unpacked they have more than {options.unpacked_max} bytes or {options.files_max} files, which is the limit{RAISED_BY}"


def _read(fd: int, said: bytearray) -> bool:
    """Read what there is; False at the end. What is too much is dropped."""
    try:
        part = os.read(fd, _OUTPUT_MAX_BYTES)
    except BlockingIOError:
        return True
    said += part[: _OUTPUT_MAX_BYTES - len(said)]
    return bool(part)


def _check_answer(output: bytes, wheels: Sequence[Wheel]) -> None:
    """Raise ScriptError if the child has refused a wheel. Its words are text from outside."""
    try:
        answer = json.loads(output)
        if answer == {"ok": True}:
            return
        wheel, cause = wheels[int(answer["wheel"])], str(answer["cause"])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ScriptError("the wheels are not installed: the process that unpacks them gave no answer") from error
    raise ScriptError(f"{wheel.filename[:120]} {escape(cause)[:300]}")
