"""`sandboxrun lock` as a command: the files that it lists and prints, what --check finds, and what a hostile folder cannot do."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from arena import Listener
from hints import hint_of
from lock_command import Lock, block_of, depend, digest, git, listed
from small_index import Index

from sandboxrun.errors import ScriptError
from sandboxrun.packages import listing


def test_a_folder_lists_what_git_tracks_and_a_worker_reads(repository: Path, lock: Lock) -> None:
    done = lock("greeter")
    warning = "warning: not listed, because git does not track it: untracked.py\n"
    hint = "hint: sandboxrun lock greeter helpers.py pkg/__init__.py pkg/page.html untracked.py\n"
    assert done.err == warning + hint
    assert done.out == "+ helpers.py\n+ pkg/__init__.py\n+ pkg/page.html\nwrote worker.py\n"
    assert block_of(repository).files == (
        ("helpers.py", digest("x = 1\n")), ("pkg/__init__.py", digest("")), ("pkg/page.html", digest("<p>\n")),
    )  # fmt: skip
    assert (repository / "worker.py").read_text().endswith('# ///\n\n"""Doc."""\nimport helpers\n')
    assert lock("greeter").out == "worker.py is current\n"
    assert lock(*hint.split()[3:]).out == "+ untracked.py\nwrote worker.py\n"
    assert lock("greeter").err == ""


def test_a_folder_keeps_what_was_named(repository: Path, lock: Lock) -> None:
    lock("greeter", "README.md", "untracked.py")
    assert lock("greeter", "--check").code == 65
    assert lock("greeter").out == "+ helpers.py\n+ pkg/__init__.py\n+ pkg/page.html\nwrote worker.py\n"
    assert listed(repository) == ["README.md", "helpers.py", "pkg/__init__.py", "pkg/page.html", "untracked.py"]
    (repository / "untracked.py").unlink()
    assert lock("greeter").out == "- untracked.py\nwrote worker.py\n"


def test_names_are_exactly_what_is_listed(folder: Path, lock: Lock) -> None:
    assert lock("greeter", "helpers.py", "greeter/pkg").code == 0
    assert listed(folder) == ["helpers.py", "pkg/__init__.py", "pkg/page.html"]
    assert lock("greeter/worker.py", "helpers.py").out == "- pkg/__init__.py\n- pkg/page.html\nwrote worker.py\n"
    assert listed(folder) == ["helpers.py"]


def test_a_script_keeps_its_list_and_gets_new_digests(repository: Path, lock: Lock) -> None:
    lock("greeter/worker.py", "helpers.py")
    (repository / "helpers.py").write_text("x = 2\n")
    assert lock("greeter/worker.py").out == "~ helpers.py\nwrote worker.py\n"
    assert block_of(repository).files == (("helpers.py", digest("x = 2\n")),)
    (repository / "helpers.py").unlink()
    assert lock("greeter/worker.py").out == "- helpers.py\nwrote worker.py\n"


def test_check_has_a_line_for_each_stale_file_and_changes_nothing(repository: Path, lock: Lock) -> None:
    lock("greeter")
    assert lock("greeter", "--check").code == 0
    (repository / "helpers.py").write_text("x = 2\n")
    (repository / "pkg/page.html").unlink()
    (repository / "new.py").touch()
    git(repository, "add", "-A")
    before = (repository / "worker.py").read_bytes()
    done = lock("greeter", "--check")
    assert (done.code, done.out) == (
        65,
        f"helpers.py: has sha256 {digest('x = 2' + chr(10))}, but {digest('x = 1' + chr(10))} is listed\n"
        "new.py: is not listed\n"
        "pkg/page.html: is listed, but there is no such file to list\n"
        "untracked.py: is not listed\n",
    )
    assert (repository / "worker.py").read_bytes() == before
    assert hint_of(done.err) == "sandboxrun lock greeter"


@pytest.mark.parametrize("broken", ["# //", "#///", "# /// "])
@pytest.mark.parametrize("flags", [(), ("--check",)])
def test_a_block_that_counts_for_nothing_is_an_error(
    folder: Path, lock: Lock, flags: tuple[str, ...], broken: str
) -> None:
    assert lock("greeter", "helpers.py").code == 0
    source = (folder / "worker.py").read_text()
    (folder / "worker.py").write_text(source.replace("# ///\n", f"{broken}\n", 1))
    done = lock("greeter", *flags)
    assert (done.code, done.out) == (65, "")
    assert "has a block `# /// script` that no line `# ///` closes" in done.err
    (folder / "worker.py").write_text(source.replace("# /// script", "#/// script", 1))
    assert "has '#/// script', which opens no block" in lock("greeter", *flags).err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a b.py", "is no relative path of ASCII letters"),
        ("é.py", "is no relative path of ASCII letters"),
        (".env", "is no relative path of ASCII letters"),
        ("sandboxrun.py", "would hide the package sandboxrun"),
        ("\x1b[2J.py", "is no relative path of ASCII letters"),
        ("a\nb", "is no relative path of ASCII letters"),
        ("big.bin", "big.bin has more than 1 MiB"),
        ("fifo", "fifo is not a regular file"),
        ("link.py", "link.py is a symbolic link, or in one"),
        ("out/passwd", "out/passwd is not below"),
        ("../elsewhere.py", "is not below"),
        ("missing.py", "missing.py is no file below"),
        ("worker.py", "worker.py is the script itself"),
    ],
)
def test_a_file_that_cannot_be_listed_is_refused_by_one_line(
    name: str, message: str, folder: Path, lock: Lock, tmp_path: Path
) -> None:
    (folder / "big.bin").write_bytes(b"x" * ((1 << 20) + 1))
    os.mkfifo(folder / "fifo")
    (folder / "link.py").symlink_to("/etc/passwd")
    (folder / "out").symlink_to("/etc")
    (folder.parent / "elsewhere.py").touch()
    if name not in ("missing.py", "fifo", "big.bin", "link.py") and "/" not in name:
        (folder / name).touch()
    before = (folder / "worker.py").read_bytes()
    done = lock("greeter", name)
    assert (done.code, done.out) == (65, ""), done
    assert message in done.err
    assert done.err.count("\n") == 1
    assert "\x1b[2J" not in done.err
    assert (folder / "worker.py").read_bytes() == before


def test_too_many_bytes_together_are_refused(folder: Path, lock: Lock) -> None:
    for number in range(9):
        (folder / f"{number}.bin").write_bytes(b"x" * (1 << 20))
    done = lock("greeter", *(f"{number}.bin" for number in range(9)))
    assert (done.code, done.err) == (65, "error: the files have more than 8 MiB together, with 8.bin\n")


def test_a_script_that_is_a_link_is_not_written_through(folder: Path, lock: Lock) -> None:
    target = folder.parent / "profile"
    target.write_text("x = 1\n")
    (folder / "worker.py").unlink()
    (folder / "worker.py").symlink_to(target)
    assert lock("greeter", "helpers.py").code == 65
    assert target.read_text() == "x = 1\n"


def test_a_lock_that_is_a_link_is_not_written_through(folder: Path, lock: Lock, index: Index) -> None:
    index.add("alpha", "1.0")
    depend(folder, "alpha")
    target = folder.parent / "profile"
    target.write_text("x\n")
    (folder / "requirements.lock").symlink_to(target)
    done = lock("greeter")
    assert (done.code, target.read_text()) == (65, "x\n"), done
    assert done.err == "error: requirements.lock is a symbolic link, or in one: only files are listed\n"


def test_the_mode_of_the_script_stays(folder: Path, lock: Lock) -> None:
    (folder / "worker.py").chmod(0o755)
    lock("greeter", "helpers.py")
    assert (folder / "worker.py").stat().st_mode & 0o777 == 0o755


def test_a_file_that_changes_while_it_is_read_is_read_again_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The digest is of bytes that were in the file at one moment."""
    path = tmp_path / "a.py"
    path.write_bytes(b"0" * 1000)
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            path.write_bytes(b"%d" % (number % 10) * (1000 + number % 7))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            try:
                data = listing.read_beside(str(tmp_path), "a.py")
            except ScriptError as error:
                assert str(error) == "a.py changes while it is read"  # noqa: PT017  # one of the two outcomes
            else:
                assert data is not None and len(set(data)) <= 1
    finally:
        stop.set()
        writer.join()


# --- a hostile repository


HOOKS = ("post-index-change", "fsmonitor-watchman", "post-checkout", "reference-transaction", "pre-auto-gc")


def test_git_starts_no_program_of_the_repository(repository: Path, lock: Lock, listener: Listener) -> None:
    canary = repository.parent / "canary"
    program = repository / "program"
    program.write_text(f"#!/bin/sh\ntouch {canary}\n")
    program.chmod(0o755)
    for hook in HOOKS:
        (repository.parent / ".git/hooks" / hook).write_text(program.read_text())
        (repository.parent / ".git/hooks" / hook).chmod(0o755)
    (repository / ".gitattributes").write_text("* filter=evil diff=evil\n")
    url = f"http://127.0.0.1:{listener.port}/"
    for name, value in {
        "core.fsmonitor": str(program), "core.hooksPath": str(repository), "core.pager": str(program), "pager.ls-files": str(program),
        "core.sshCommand": str(program), "core.gitProxy": str(program), "filter.evil.clean": str(program), "filter.evil.smudge": str(program),
        "filter.evil.process": str(program), "diff.external": str(program), "credential.helper": str(program), "core.editor": str(program),
        "alias.ls-files": f"!{program}", "protocol.allow": "always", "protocol.ext.allow": "always", "remote.origin.url": f"ext::{program}",
        "remote.origin.promisor": "true", "remote.origin.partialclonefilter": "blob:none", "http.proxy": url,
    }.items():  # fmt: skip
        git(repository.parent, "config", name, value)
    done = lock("greeter")
    assert done.out.endswith("+ helpers.py\n+ pkg/__init__.py\n+ pkg/page.html\nwrote worker.py\n"), done
    assert not canary.exists()
    # The same repository does start it where nothing forbids it, so the test can see it.
    subprocess.run(["git", "status"], cwd=repository, capture_output=True, check=False)
    assert canary.exists()
    assert listener.connections == 0


def test_a_missing_tree_of_a_sparse_index_is_not_fetched(repository: Path, lock: Lock) -> None:
    """A repository with a promised tree: to expand its index, git would fetch it with the program that the remote names."""
    canary = repository.parent / "canary"
    root = repository.parent
    git(root, "-c", "user.name=a", "-c", "user.email=a@b.example", "commit", "-q", "-m", "first")
    tree = subprocess.check_output(["git", "rev-parse", "HEAD:greeter/pkg"], cwd=root, text=True).strip()
    (root / "top").touch()
    git(root, "sparse-checkout", "set", "--cone", "--sparse-index", "other")
    (root / ".git/objects" / tree[:2] / tree[2:]).unlink()
    git(root, "config", "protocol.ext.allow", "always")
    git(root, "config", "remote.origin.url", f"ext::sh -c touch% {canary}")
    git(root, "config", "remote.origin.promisor", "true")
    git(root, "config", "extensions.partialClone", "origin")
    repository.mkdir(exist_ok=True)
    (repository / "worker.py").write_text("x = 1\n")
    done = lock("greeter")
    assert done.code in (0, 65)
    assert not canary.exists()
    subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, check=False)
    assert canary.exists()


def test_a_bare_repository_inside_a_folder_is_not_taken(folder: Path, lock: Lock) -> None:
    canary = folder.parent / "canary"
    git(folder, "init", "-q", "--bare", ".")
    (folder / "config").write_text(
        f'[core]\n\trepositoryformatversion = 0\n\tbare = false\n\tworktree = .\n\tfsmonitor = "touch {canary}"\n'
    )
    lock("greeter", "helpers.py")
    lock("greeter")
    assert not canary.exists()
    subprocess.run(["git", "status"], cwd=folder, capture_output=True, check=False)
    assert canary.exists()


def test_a_tracked_link_and_a_file_that_became_one_are_not_read(repository: Path, lock: Lock) -> None:
    (repository / "secret.txt").symlink_to("/etc/passwd")
    git(repository, "add", "secret.txt")
    lock("greeter")
    assert "secret.txt" not in listed(repository)
    (repository / "helpers.py").unlink()
    (repository / "helpers.py").symlink_to("/etc/passwd")
    done = lock("greeter")
    assert (done.code, done.err) == (65, "error: helpers.py is a symbolic link, or in one: only files are listed\n")
