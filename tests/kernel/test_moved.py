"""Files that are moved and symlinks that are planted, so that the next start, of the same worker or of another, grants what
they lead to."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import Arena, listening
from attack import arrived, attempt

from sandboxrun.config.limits import Limits
from sandboxrun.config.permissions import NetTarget, Permissions
from sandboxrun.errors import SandboxError
from sandboxrun.records import replace
from sandboxrun.sandbox.compile import features, policy
from sandboxrun.sandbox.supervisor.child import Child, Confinement, Script, this_interpreter
from sandboxrun.sandbox.supervisor.handlers.metadata import Metadata

READ_ALL = """
def attempt():
    found = []
    for path in V["paths"]:
        try:
            found.append(open(path).read())
        except OSError as error:
            found.append(errno.errorcode[error.errno])
    return sorted(found)
"""
# From V["tree"], of which `secret` and `keys/private` are denied for reading, to a name that is not.
MOVES = {
    "renamed": ("os.rename('secret', 'new')", "EACCES"),
    "renamed over a readable file": ("os.rename('secret', 'other')", "EACCES"),
    "renamed into a readable folder": ("os.rename('secret', 'sub/new')", "EACCES"),
    "linked": ("os.link('secret', 'new')", "EACCES"),
    "linked into a readable folder": ("os.link('secret', 'sub/new')", "EXDEV"),
    "exchanged": ("call(NR['renameat2'], -100, b'secret', -100, b'other', 2)", "EACCES"),
    "its folder renamed": ("os.rename('keys', 'locks')", "EACCES"),
    "its folder renamed into a readable folder": ("os.rename('keys', 'sub/locks')", "EACCES"),
    "renamed within its folder": ("os.rename('keys/private', 'keys/public')", "EACCES"),
    "removed": ("os.unlink('secret')", "EACCES"),
    "its folder's folder's name taken": ("os.mkdir('locks'); os.rename('locks', 'keys')", "EACCES"),
}


def _files(tree: Path) -> list[str]:
    return [str(path) for path in tree.rglob("*") if path.is_file()]


def _plant(tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    for name in ("secret", "keys/private", "other", "sub/file"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)


@pytest.mark.parametrize("move", MOVES)
def test_what_is_denied_for_reading_is_not_moved_by_a_worker_that_may_write(
    arena: Arena, tmp_path: Path, move: str
) -> None:
    tree = tmp_path / "tree"
    way, errno = MOVES[move]
    code = attempt(f"os.chdir(V['tree'])\n{way}\nreturn 'moved'").replace(
        "NR['renameat2']", "316 if os.uname().machine == 'x86_64' else 276"
    )
    grants = {"read": str(tree), "write": str(tree)}
    deny = {"read": f"{tree}/secret,{tree}/keys/private"}
    _plant(tree)
    free = arena.unconfined(code, tree=str(tree))
    if move != "its folder's folder's name taken":
        assert free.value == "moved", free
    _plant(tree)
    held = arena.confined(code, allow=grants, deny=deny, tree=str(tree))
    assert (held.errno, held.value) == (errno, None), held
    found = arena.confined(READ_ALL, allow=grants, deny=deny, paths=_files(tree))
    assert found.value == ["EACCES", "EACCES", "other", "sub/file"]


def test_what_is_not_denied_for_writing_is_still_written(arena: Arena, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    _plant(tree)
    code = """
    def attempt():
        for name in ("secret", "keys/private", "other", "sub/file", "sub/new"):
            with open(os.path.join(V["tree"], name), "w") as file:
                file.write("written")
        return "written"
    """
    grants = {"read": str(tree), "write": str(tree)}
    held = arena.confined(code, allow=grants, deny={"read": f"{tree}/secret,{tree}/keys"}, tree=str(tree))
    assert held.value == "written", held
    assert {path.read_text() for path in tree.rglob("*") if path.is_file()} == {"written"}


def test_a_folder_can_be_written_in_and_not_read(arena: Arena, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.mkdir()
    code = "def attempt():\n    open(V['box'] + '/new', 'w').close()\n    return os.listdir(V['box'])"
    assert arena.unconfined(code, box=str(box)).value == ["new"]
    (box / "new").unlink()
    held = arena.confined(code, allow={"write": str(box)}, deny={"read": str(box)}, box=str(box))
    assert held.errno == "EACCES"
    assert (box / "new").exists()


PLANT = "def attempt():\n    os.symlink(V['target'], V['link'])\n    return 'planted'"


@pytest.mark.parametrize(
    ("verdict", "kind", "path"),
    [
        ("allow", "read", "shared/x"),
        ("allow", "read", "shared/x/secret"),
        ("allow", "write", "shared/x"),
        ("allow", "run", "shared/x/program"),
        ("deny", "read", "shared/x"),
        ("deny", "write", "shared/x"),
        ("deny", "run", "shared/x/program"),
        ("allow", "read", "way/x"),
        ("allow", "run", "script"),
    ],
)
def test_a_symlink_that_another_worker_planted_is_not_followed(
    arena: Arena, tmp_path: Path, verdict: str, kind: str, path: str
) -> None:
    shared, private = tmp_path / "shared", tmp_path / "private"
    for folder in (shared, private):
        folder.mkdir()
    (private / "secret").write_text("private")
    shutil.copy("/usr/bin/true", private / "program")
    (tmp_path / "way").symlink_to(shared)
    (tmp_path / "script").write_text(f"#!{shared}/x/program\n")
    (tmp_path / "script").chmod(0o755)
    planted = arena.confined(PLANT, allow={"write": str(shared)}, target=str(private), link=str(shared / "x"))
    assert planted.value == "planted"
    grants = {verdict: {kind: str(tmp_path / path)}}
    held = arena.confined(READ_ALL, **grants, paths=[str(private / "secret")])  # type: ignore[arg-type]  # allow or deny
    assert (held.value, held.errno, held.code) == (None, "NO OUTCOME", 1)
    link = tmp_path / "way" if path.startswith("way") else shared / "x"
    assert f"{link} is a symlink in a folder that workers may be given for writing" in held.stderr
    (shared / "x").unlink()
    free = arena.confined(READ_ALL, allow={"read": str(private)}, paths=[str(private / "secret")])
    assert free.value == ["private"]


@pytest.fixture
def short() -> Iterator[Path]:
    """An address of a Unix socket has room for 107 characters (unix(7))."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


UNIX = "def u():\n    with socket.socket(socket.AF_UNIX) as s:\n        s.connect(V['path'])\n        return s.recv(5).decode()\n"


def test_no_grant_covers_a_symlink_that_leads_to_redis(arena: Arena, short: Path) -> None:
    for name in ("data", "redis"):
        (short / name).mkdir()
    (short / "data" / "link").symlink_to(short / "redis")
    (short / "way").symlink_to(short / "data" / "link")
    with listening(socket.AF_UNIX, str(short / "redis" / "s")) as listener:
        for path in (short / "data" / "link" / "s", short / "way" / "s"):
            code = UNIX + "attempt = u"
            assert arena.confined(code, redis=str(path), path=str(path)).value == "hello"
            before = arrived(listener)
            held = arena.confined(code, redis=str(path), allow={"write": str(short / "data")}, path=str(path))
            assert held.errno == "NO OUTCOME"
            assert "field allowWrite of test:1:h" in held.stderr
            assert f"through the symlink {short}/data/link" in held.stderr
            assert arrived(listener) == before


def test_redis_socket_is_found_once(arena: Arena, short: Path) -> None:
    """Whatever becomes of the symlink: the worker, or one that shares a folder with it, could put another in its place."""
    code = (
        UNIX
        + """
def attempt():
    print(u(), flush=True)
    told("replaced")
    return u()
"""
    )
    link = short / "link"
    link.symlink_to(short / "s")
    with (
        listening(socket.AF_UNIX, str(short / "s")) as redis,
        listening(socket.AF_UNIX, str(short / "other")) as other,
        arena.running(code, redis=str(link), variables={"path": str(link)}) as running,
    ):
        assert running.line() == "hello"
        link.unlink()
        link.symlink_to(short / "other")
        running.tell("replaced")
        assert running.end().value == "hello"
        assert (arrived(redis), arrived(other)) == (2, 0)


def confine_with(folder: Path, write: Path) -> None:
    """A child of a policy that was made before `write` became what it is now."""
    made = policy.build(
        Permissions(), key="test:1:h", interpreter=this_interpreter(), scratch=str(folder), local_source=None,
        redis=NetTarget.parse("127.0.0.1:1"), protected=(), limits=Limits(),
    )  # fmt: skip
    child = Child("test:1:h", features.probe())
    try:
        script = Script(b"", "x", None, None, is_file=False)
        written = replace(made, write=(str(write),))
        confinement = Confinement("test:1:h", written, script, this_interpreter(), scratch=str(folder), env={})
        os.close(child.confine(confinement))
    finally:
        child.close()


def test_a_granted_folder_that_became_a_symlink_meanwhile_is_not_opened(tmp_path: Path) -> None:
    """By another worker, between the decision and the ruleset."""
    data, private = tmp_path / "data", tmp_path / "private"
    private.mkdir()
    data.symlink_to(private)
    with pytest.raises(SandboxError, match=f"cannot open {data} to grant it"):
        confine_with(tmp_path, data)
    with pytest.raises(SandboxError, match=f"cannot open {data} to grant it"):
        Metadata(None, [str(private), str(data)])  # type: ignore[arg-type]  # it is not called


def test_an_entry_that_is_gone_meanwhile_keeps_nobody_from_starting(tmp_path: Path) -> None:
    """A folder of which a part is denied is granted entry by entry, and one may be a temporary file of somebody's."""
    confine_with(tmp_path, tmp_path / "gone")
    Metadata(None, [str(tmp_path), str(tmp_path / "gone")]).close()  # type: ignore[arg-type]


def test_a_symlink_beside_code_is_followed(arena: Arena, tmp_path: Path) -> None:
    """There no worker can have put one: no grant for writing reaches it."""
    folder = Path(sys.prefix)
    target = tmp_path / "data"
    target.mkdir()
    (target / "file").write_text("text")
    link = folder / f"link-{os.getpid()}"
    link.symlink_to(target)
    try:
        assert arena.confined(READ_ALL, allow={"read": str(link)}, paths=_files(target)).value == ["text"]
    finally:
        with contextlib.suppress(FileNotFoundError):
            link.unlink()
