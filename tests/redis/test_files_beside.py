"""A worker by URL that has other files beside its script, each named with its digest in the script's block."""

from __future__ import annotations

import hashlib
import http.server
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from arena import wait_for
from raw_host import RawHost, body, redirect
from runner import Runner

HELPERS = "import pkg.part\nNAME = 'helpers'\n\ndef fail():\n    raise ValueError('of a helper')\n"
FILES = {"helpers.py": HELPERS, "pkg/__init__.py": "", "pkg/part.py": "VALUE = 7\n", "page.html": "<p>hi</p>\n"}
MAIN = """\
import os, pathlib, helpers
here = pathlib.Path(__file__).parent
print(helpers.NAME, helpers.pkg.part.VALUE, (here / "page.html").read_text().strip(), pathlib.Path(helpers.__file__).parent == here)
print(helpers.__cached__ is not None and os.path.exists(helpers.__cached__))
"""
PRINTED = "helpers 7 <p>hi</p> True\nTrue\n"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def script(files: dict[str, str], code: str = MAIN, **extra: str) -> str:
    """With a block that lists the `files` (path to content), and `extra` ones (path to digest)."""
    listed = {path: digest(text) for path, text in files.items()} | extra
    table = ", ".join(f'"{path}" = "sha256:{hexadecimal}"' for path, hexadecimal in listed.items())
    return f"# /// script\n# [tool.sandboxrun]\n# files = {{ {table} }}\n# ///\n{code}"


Serve = Callable[..., None]


@pytest.fixture
def serve(r: redis.Redis, host: RawHost) -> Serve:
    """Serve a script and its files as v1, and name it in the worker's hash."""

    def put(files: dict[str, str] | None = None, code: str = MAIN, **extra: str) -> None:
        files = FILES if files is None else files
        host.files["/v1/w.py"] = script(files, code, **extra)
        host.files.update({f"/v1/{path}": body(text.encode(), "text/html") for path, text in files.items()})
        r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py?token=1", "version": "refs/tags/v1"})
        host.files["/refs/tags/v1/w.py?token=1"] = host.files["/v1/w.py"]
        host.files.update({f"/refs/tags/v1/{path}?token=1": host.files[f"/v1/{path}"] for path in files})

    return put


def trees(run: Runner) -> list[Path]:
    return sorted(path for path in (run.home / ".cache/sandboxrun").glob("trees/*") if path.is_dir())


def test_all_files_are_fetched_once_and_run_from_the_cache(run: Runner, serve: Serve, host: RawHost) -> None:
    serve()
    for _ in range(2):
        done = run("t", "1")
        assert (done.code, done.out) == (0, PRINTED), done.err
    assert sorted(path for path, _ in host.requests) == sorted(
        f"/refs/tags/v1/{path}?token=1" for path in ("w.py", *FILES)
    )
    host.close()
    assert run("t", "1", "--cached-only").out == PRINTED


def test_a_worker_cannot_write_its_files(run: Runner, serve: Serve, tmp_path: Path) -> None:
    code = (
        "import pathlib, helpers\n"
        "here = pathlib.Path(__file__).parent\n"
        "for what in (lambda: (here / 'new.py').write_text('x'), lambda: open(helpers.__file__, 'a'),\n"
        "             lambda: here.chmod(0o700), lambda: (here / 'page.html').unlink()):\n"
        "    try:\n        what()\n        print('done')\n"
        "    except OSError as error:\n        print(error.errno)\n"
    )
    serve(code=code)
    assert run("t", "1").out == "13\n13\n1\n13\n"  # EACCES, and EPERM for chmod
    [tree] = trees(run)
    assert sorted(path.name for path in tree.iterdir()) == ["__pycache__", "helpers.py", "page.html", "pkg", "w.py"]


@pytest.mark.parametrize("path", ["helpers.py", "page.html", "pkg/part.py", "w.py", "pyc"])
@pytest.mark.parametrize("change", ["byte", "removed", "symlink"])
def test_what_was_changed_on_disk_is_laid_out_anew_and_never_run(
    run: Runner, serve: Serve, path: str, change: str, tmp_path: Path
) -> None:
    serve()
    assert run("t", "1").out == PRINTED
    [tree] = trees(run)
    file = next(tree.glob("__pycache__/helpers*.pyc")) if path == "pyc" else tree / path
    data = file.read_bytes()
    file.parent.chmod(0o700)
    file.chmod(0o600)
    if change == "byte":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        file.unlink()
        if change == "symlink":
            (tmp_path / "same").write_bytes(data)
            file.symlink_to(tmp_path / "same")
    assert run("t", "1").out == PRINTED
    assert (next(tree.glob("__pycache__/helpers*.pyc")) if path == "pyc" else tree / path).read_bytes() == data


def test_script_and_files_of_more_code_than_is_kept_are_compiled_by_the_worker(run: Runner, serve: Serve) -> None:
    folding = "".join(f'x = "{line:08}" * 512\n' for line in range(256 * 20))  # 20 MiB of code
    code = folding + "import one, two\nprint(len(one.x), len(two.x))\n"
    serve({"one.py": folding, "two.py": folding}, code)
    for _ in range(2):
        done = run("t", "1")
        assert (done.code, done.out.split()[0], done.out.split()[-1]) == (0, "4096", "4096"), done.err
    [tree] = trees(run)
    assert [path.name.partition(".")[0] for path in tree.rglob("*.pyc")] == ["one"]


@pytest.mark.parametrize("name", ["redis.py", "json.py", "pkg/more.py", "x/y.py"])
def test_what_was_put_beside_them_is_never_imported(run: Runner, serve: Serve, name: str) -> None:
    serve()
    assert run("t", "1").out == PRINTED
    [tree] = trees(run)
    for folder in (tree, tree / "pkg"):
        folder.chmod(0o700)
    (tree / name).parent.mkdir(exist_ok=True)
    (tree / name).write_text("print('planted')")
    assert run("t", "1").out == PRINTED
    assert not (tree / name).exists()


def test_another_content_is_refused_and_the_old_files_stay(
    r: redis.Redis, run: Runner, serve: Serve, host: RawHost
) -> None:
    serve()
    assert run("t", "1").out == PRINTED
    before = trees(run)
    other = FILES | {"helpers.py": HELPERS + "# new\n"}
    host.files["/v2/w.py"] = script(other)
    host.files.update({f"/v2/{path}": body(text.encode()) for path, text in FILES.items()})  # a branch half updated
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v2"})
    done = run("t", "1")
    expected = f"/v2/helpers.py has sha256 {digest(HELPERS)}, but the script pins {digest(other['helpers.py'])}"
    assert done.code == 65
    assert done.err.endswith(f"error: {host.url}{expected}\n"), done.err
    assert trees(run) == before
    assert done.out == ""


FAULTS = {
    "missing": (lambda host: None, 69, "answers 404"),
    "too long": (lambda host: body(b"x" * (1 << 20) + b"x"), 69, "has 1048577 bytes"),
    "elsewhere": (lambda host: redirect("https://elsewhere.example/x"), 69, "elsewhere.example is not among the hosts"),
    "page": (lambda host: body(b"<html>", "text/html"), 65, "has sha256"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_that_cannot_be_had_is_named(run: Runner, serve: Serve, host: RawHost, fault: str) -> None:
    answer, code, said = FAULTS[fault]
    serve()
    path = "/refs/tags/v1/pkg/part.py?token=1"
    if (value := answer(host)) is None:
        del host.files[path]
    else:
        host.files[path] = value
    done = run("t", "1")
    assert (done.code, done.out) == (code, ""), done.err
    assert said in done.err
    assert "part.py" in done.err or fault == "elsewhere"
    assert trees(run) == []


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("../x.py", "is no relative path"),
        ("/etc/passwd", "is no relative path"),
        ("w.py", "which is the script itself"),
        ("W.py", "which is the script itself"),
        ("w.py/x.py", "or below it"),
        ("__pycache__/x.pyc", "where Python keeps compiled code"),
        ("sandboxrun/x.py", "would hide the package sandboxrun"),
        ("x" * 300, "is longer than 200"),
    ],
)
def test_a_wrong_list_is_refused_before_any_request(
    run: Runner, serve: Serve, host: RawHost, path: str, said: str
) -> None:
    serve(**{path: "0" * 64})
    done = run("t", "1")
    assert (done.code, done.out) == (65, "")
    assert said in done.err
    assert len(host.requests) == 1  # the script's


def test_files_of_more_than_8_mib_together_are_refused(run: Runner, serve: Serve) -> None:
    serve({f"f{number}.bin": chr(65 + number) * (1 << 20) for number in range(9)}, "print(1)")
    done = run("t", "1")
    assert (done.code, done.out) == (65, "")
    assert "more than 8 MiB together" in done.err


def test_too_much_is_noticed_while_it_comes(run: Runner, serve: Serve, host: RawHost) -> None:
    """Not only once the first file is there, which is the last to come."""
    files = {f"f{number:03}.bin": f"{number:03}".ljust(1 << 20, "x") for number in range(40)}
    serve(files, "print(1)")
    path = "/refs/tags/v1/f000.bin?token=1"
    first = host.files[path]

    def late(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(3)
        first(handler)

    host.files[path] = late
    assert run("t", "1").code == 65
    assert len(host.requests) < 25


def test_a_slow_server_keeps_no_other_worker_waiting(r: redis.Redis, run: Runner, serve: Serve, host: RawHost) -> None:
    serve(code="import helpers\nprint(helpers.NAME)\n")
    host.files |= {"/slow/w.py": script({"a.py": "A = 1\n"}), "/slow/a.py": lambda handler: time.sleep(20)}
    r.hset("t:2:h", mapping={"url": host.url + "/{version}/w.py", "version": "slow"})
    with run.start("t", "2"):
        wait_for(lambda: any(path == "/slow/a.py" for path, _ in host.requests), 20)
        start = time.monotonic()
        assert run("t", "1").out == "helpers\n"
        assert time.monotonic() - start < 15


def test_an_uncaught_error_shows_the_lines_of_all_files(run: Runner, serve: Serve) -> None:
    serve(code="import helpers\nhelpers.fail()\n")
    done = run("t", "1")
    assert done.code == 1
    assert "raise ValueError('of a helper')" in done.err
    assert "helpers.fail()" in done.err


def test_a_refusal_in_a_file_beside_the_script_names_its_grant(run: Runner, serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    serve(
        {"helpers.py": f"def read():\n    return open({str(tmp_path / 'secret')!r}).read()\n"},
        "import helpers\nhelpers.read()\n",
    )
    done = run("t", "1")
    assert f"grant it with: --allow-read={tmp_path / 'secret'}" in done.err


def test_a_file_with_a_syntax_error_is_told_by_the_import(run: Runner, serve: Serve) -> None:
    serve({"helpers.py": "def (:\n"}, "import helpers\n")
    done = run("t", "1")
    assert "SyntaxError" in done.err
    assert "helpers.py" in done.err


def test_two_first_starts_at_once_both_run(r: redis.Redis, run: Runner, serve: Serve) -> None:
    serve(code="import helpers, time\ntime.sleep(1)\nprint(helpers.NAME)\n")
    for name in ("url", "version"):
        r.hset("t:2:h", name, r.hget("t:1:h", name) or "")
    with run.start("t", "1") as one, run.start("t", "2") as two:
        assert [process.wait(30) for process in (one, two)] == [0, 0]
    assert len(trees(run)) == 1
    assert not list((run.home / ".cache/sandboxrun").glob("trees/.staging*"))


def test_a_python_that_the_script_does_not_take_is_refused(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    for requires in (">=3.99", "<3", "!=3.*", "~=2.7"):
        (tmp_path / "worker.py").write_text(f'# /// script\n# requires-python = "{requires}"\n# ///\nprint(1)\n')
        r.hset("t:1:h", mapping={"url": str(tmp_path), "version": "local"})
        done = run("t", "1")
        assert (done.code, done.out) == (78, "")
        assert f"requires Python {requires}, and sandboxrun runs it with 3." in done.err


def test_a_local_folder_runs_as_it_is_and_says_that_its_list_is_stale(
    r: redis.Redis, run: Runner, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "worker.py").write_text(script({"helpers.py": "NAME = 'old'\n"}, "import helpers\nprint(helpers.NAME)\n"))
    (folder / "helpers.py").write_text("NAME = 'new'\n")
    r.hset("t:1:h", mapping={"url": str(folder), "version": "local"})
    done = run("t", "1")
    assert (done.code, done.out) == (0, "new\n"), done.err
    assert f"lists other contents of helpers.py than {os.path.realpath(folder)} has" in done.err
    assert f"hint: sandboxrun lock {os.path.realpath(folder)}" in done.err
