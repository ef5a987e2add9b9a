"""`sandboxrun lock` as a command: what it lists and prints, what --check finds, and what a hostile folder cannot do."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import certificates
import pytest
from arena import Listener
from hints import hint_of, paste
from runner import Done, Runner
from small_index import Index, serving

from sandboxrun.config.script import Block, read_block
from sandboxrun.errors import ScriptError
from sandboxrun.packages import listing

NO_REDIS = "redis://127.0.0.1:1"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def index() -> Iterator[Index]:
    with serving() as found:
        yield found


def index_variables(index: Index) -> dict[str, str]:
    return {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index.url, "UV_HTTP_RETRIES": "0"}


class Lock:
    """The command `sandboxrun lock`."""

    def __init__(self, home: Path, index: Index) -> None:
        home.mkdir(exist_ok=True)
        self.run = Runner(NO_REDIS, home, policy=None)
        self.run.env |= index_variables(index)

    def __call__(self, *args: str) -> Done:
        return self.run("lock", *args)


@pytest.fixture
def lock(tmp_path: Path, index: Index) -> Lock:
    return Lock(tmp_path / "home", index)


@pytest.fixture
def secure(tmp_path: Path, lock: Lock) -> Iterator[Index]:
    """An index over https, which `lock` uses: a lock of the second form has no other URLs."""
    made = certificates.make(tmp_path)
    with serving(made) as found:
        lock.run.env |= {**index_variables(found), "PIP_CERT": str(made.authority)}
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """greeter in the home of the command."""
    made = tmp_path / "home/greeter"
    files = {
        "worker.py": '"""Doc."""\nimport helpers\n',
        "helpers.py": "x = 1\n",
        "pkg/__init__.py": "",
        "pkg/page.html": "<p>\n",
    }
    for path, text in files.items():
        (made / path).parent.mkdir(parents=True, exist_ok=True)
        (made / path).write_text(text)
    return made


def git(folder: Path, *args: str) -> None:
    subprocess.run(["git", "-c", "init.defaultBranch=main", *args], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(lock: Lock, folder: Path) -> Path:
    for path in ("README.md", ".gitignore", "tests/test_a.py", "test_b.py", "pyproject.toml", "requirements.lock"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", "-A")
    (folder / "untracked.py").touch()
    return folder


def block_of(folder: Path) -> Block:
    block = read_block((folder / "worker.py").read_bytes(), "worker.py")
    assert block is not None
    return block


def listed(folder: Path) -> list[str]:
    return [path for path, _ in block_of(folder).files]


def depend(folder: Path, *dependencies: str) -> None:
    """Set the dependencies in the block, as an author does."""
    path = folder / "worker.py"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# dependencies")]
    if "# /// script" not in lines:
        lines = ["# /// script", "# ///", *lines]
    lines.insert(lines.index("# /// script") + 1, f"# dependencies = {list(dependencies)}".replace("'", '"'))
    path.write_text("\n".join(lines) + "\n")


# --- files


def test_a_folder_lists_what_git_tracks_and_a_worker_reads(repository: Path, lock: Lock) -> None:
    done = lock("greeter")
    left_out = "untracked.py is not tracked by git, so it is not listed\n"
    assert done.out == f"{left_out}+ helpers.py\n+ pkg/__init__.py\n+ pkg/page.html\nwrote worker.py\n"
    assert block_of(repository).files == (
        ("helpers.py", digest("x = 1\n")), ("pkg/__init__.py", digest("")), ("pkg/page.html", digest("<p>\n")),
    )  # fmt: skip
    assert (repository / "worker.py").read_text().endswith('# ///\n\n"""Doc."""\nimport helpers\n')
    assert lock("greeter").out == f"{left_out}worker.py is current\n"


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


# --- packages


def test_dependencies_are_locked_and_what_changed_is_printed(folder: Path, lock: Lock, index: Index) -> None:
    index.add("alpha", "1.0", "beta")
    index.add("beta", "1.0")
    depend(folder, "alpha")
    done = lock("greeter", "helpers.py")
    assert done.out == "+ helpers.py\n+ alpha 1.0\n+ beta 1.0\nwrote requirements.lock\nwrote worker.py\n", done
    text = (folder / "requirements.lock").read_text()
    assert block_of(folder).lock == digest(text)
    assert text.startswith("# Made by: sandboxrun lock worker.py\n# For: alpha\nalpha==1.0 ")
    assert "127.0.0.1" not in text
    assert lock("greeter", "--check").out == "worker.py is current\n"

    index.add("alpha", "2.0")
    assert lock("greeter").out == "worker.py is current\n"
    assert lock("greeter", "--upgrade").out == (
        "~ alpha 1.0 -> 2.0\n- beta 1.0\nwrote requirements.lock\nwrote worker.py\n"
    )


def test_other_wheels_of_a_version_are_printed(folder: Path, lock: Lock, index: Index) -> None:
    index.add("alpha", "1.0")
    depend(folder, "alpha")
    lock("greeter")
    index.add("alpha", "1.0", tag="cp311-cp311-manylinux_2_28_x86_64")
    done = lock("greeter", "--upgrade")
    assert done.out == "~ alpha 1.0 (other wheels)\nwrote requirements.lock\nwrote worker.py\n"


def test_without_a_changed_dependency_no_index_is_asked(folder: Path, lock: Lock, index: Index) -> None:
    index.add("alpha", "1.0")
    depend(folder, "alpha")
    lock("greeter")
    index.asked.clear()
    (folder / "helpers.py").write_text("x = 2\n")
    assert lock("greeter", "helpers.py").code == 0
    assert lock("greeter", "--check").code == 0
    assert index.asked == []


def test_without_dependencies_there_is_no_lock(folder: Path, lock: Lock, index: Index) -> None:
    index.add("alpha", "1.0")
    depend(folder, "alpha")
    lock("greeter")
    depend(folder)
    assert lock("greeter", "--check").out == "worker.py: has a lock, but no dependencies\n"
    assert lock("greeter").out == "- alpha 1.0\nwrote worker.py\n"
    assert block_of(folder).lock is None


def test_check_says_what_is_stale_of_a_lock(folder: Path, lock: Lock, index: Index) -> None:
    for version in ("1.0", "2.0"):
        index.add("alpha", version)
    index.add("beta", "1.0")
    depend(folder, "alpha<2")
    assert lock("greeter", "--check").out == "worker.py: has dependencies, but no lock\n"
    lock("greeter")
    depend(folder, "alpha<2", "Beta")
    assert lock("greeter", "--check").out == "requirements.lock: does not have Beta\n"
    depend(folder, "alpha>=2")
    assert lock("greeter", "--check").out == "requirements.lock: has alpha 1.0, which is not alpha>=2\n"
    depend(folder, "alpha<3")
    assert lock("greeter", "--check").out == "requirements.lock: was made for other dependencies\n"
    depend(folder, "alpha<2")
    assert lock("greeter", "--check").code == 0
    (folder / "requirements.lock").write_text("alpha==1.0 --hash=sha256:00\n")
    assert lock("greeter", "--check").out.startswith("requirements.lock: has sha256 ")
    (folder / "requirements.lock").unlink()
    assert lock("greeter", "--check").out == "requirements.lock: is missing\n"


def test_the_form_of_the_lock_stays(folder: Path, lock: Lock, secure: Index) -> None:
    secure.add("alpha", "1.0")
    depend(folder, "alpha")
    assert lock("greeter", "--pylock").out.endswith("wrote pylock.worker.toml\nwrote worker.py\n")
    secure.add("beta", "1.0")
    depend(folder, "alpha", "beta")
    assert lock("greeter").out == "+ beta 1.0\nwrote pylock.worker.toml\nwrote worker.py\n"
    assert not (folder / "requirements.lock").exists()


def test_a_lock_with_urls_needs_an_index_with_https(folder: Path, lock: Lock, index: Index) -> None:
    index.add("alpha", "1.0")
    depend(folder, "alpha")
    done = lock("greeter", "--pylock")
    assert (done.code, done.out) == (65, "")
    assert "has alpha with the URL 'http://127.0.0.1" in done.err
    assert not (folder / "pylock.worker.toml").exists()


def test_a_date_is_written_and_holds_from_then_on(folder: Path, lock: Lock, index: Index) -> None:
    index.add("alpha", "1.0", uploaded="2026-01-01")
    index.add("alpha", "2.0", uploaded="2026-06-01")
    depend(folder, "alpha")
    assert lock("greeter", "--exclude-newer", "2026-03-01").out.startswith("+ alpha 1.0\n")
    assert block_of(folder).exclude_newer == "2026-03-01"
    assert lock("greeter", "--upgrade").out == "worker.py is current\n"
    assert lock("greeter", "--exclude-newer", "", "--upgrade").out.startswith("~ alpha 1.0 -> 2.0\n")


def test_no_solution_and_no_index_change_nothing(folder: Path, lock: Lock, index: Index) -> None:
    index.add("alpha", "1.0")
    depend(folder, "alpha>5")
    before = (folder / "worker.py").read_bytes()
    done = lock("greeter", "helpers.py")
    assert (done.code, done.out) == (65, "")
    assert done.err.startswith("error: the dependencies have no solution: Because only alpha==1.0 is available")
    assert (folder / "worker.py").read_bytes() == before
    assert not (folder / "requirements.lock").exists()


def test_an_index_in_the_script_s_own_uv_table_is_never_asked(
    folder: Path, lock: Lock, index: Index, listener: Listener
) -> None:
    index.add("alpha", "1.0")
    depend(folder, "alpha")
    url = f"http://127.0.0.1:{listener.port}/simple"
    path = folder / "worker.py"
    path.write_text(
        path.read_text().replace(
            "# ///\n",
            f'# [tool.uv]\n# index-url = "{url}"\n# [[tool.uv.index]]\n# name = "evil"\n# url = "{url}"\n# default = true\n'
            f'# [tool.uv.sources]\n# alpha = {{ path = "/etc" }}\n# ///\n',
        )
    )
    (folder / "uv.toml").write_text(f'index-url = "{url}"\n')
    (folder / "pip.conf").write_text(f"[global]\nindex-url = {url}\n")
    done = lock("greeter")
    assert done.out.startswith("+ alpha 1.0\n"), done
    assert listener.connections == 0


def test_two_scripts_in_a_folder_do_not_share_a_lock(folder: Path, lock: Lock, secure: Index) -> None:
    secure.add("alpha", "1.0")
    depend(folder, "alpha")
    (folder / "it's.py").write_bytes((folder / "worker.py").read_bytes())
    lock("greeter")
    first = (folder / "requirements.lock").read_bytes()
    done = lock("greeter/it's.py")
    assert (done.code, done.out) == (65, "")
    assert "error: requirements.lock is the lock of worker.py, and it's.py lies in the same folder\n" in done.err
    assert (folder / "requirements.lock").read_bytes() == first
    pasted = paste(hint_of(done.err), lock.run.env, folder)
    assert pasted.stdout == "wrote pylock.it-s.toml\nwrote it's.py\n", pasted
    assert lock("greeter", "--check").code == lock("greeter/it's.py", "--check").code == 0
