"""`sandboxrun lock` as a command: the packages that it locks, what it prints of them, and what it never asks."""

from __future__ import annotations

from pathlib import Path

from arena import Listener
from hints import hint_of, paste
from lock_command import Lock, block_of, depend, digest
from small_index import Index


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
