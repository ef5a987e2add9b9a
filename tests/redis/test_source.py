"""Where scripts come from: versions, pins, the cache, and servers that lie, stall or are gone."""

from __future__ import annotations

import contextlib
import hashlib
import marshal
import os
import socket
import subprocess
from pathlib import Path

import pytest
import redis
from raw_host import RawHost, body, drip, raw_host, redirect
from runner import Runner

from sandboxrun.digests import sealed
from sandboxrun.errors import FetchError
from sandboxrun.fetch import download as download_module
from sandboxrun.fetch.resolve import ImportList

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATH = "/owner/repo/{}/demo/worker.py"


def script(text: str) -> str:
    return f"import sys\nprint({text!r}, sys.argv[1])\n"


@pytest.fixture
def versions(r: redis.Redis, host: RawHost) -> None:
    for version in ("main", "v1.0.0", "v1.1.0", COMMIT):
        host.files[PATH.format(version)] = script(version)
    r.hset("t:1:h", mapping={"url": host.url + PATH.format("{version}"), "version": "main"})


@pytest.mark.usefixtures("versions")
def test_branch_tag_commit_and_local_run_and_one_hset_upgrades_and_rolls_back(
    r: redis.Redis, run: Runner, tmp_path: Path
) -> None:
    for version in ("main", "v1.0.0", "v1.1.0", "v1.0.0", COMMIT):
        r.hset("t:1:h", "version", version)
        done = run("t", "1")
        assert (done.code, done.out) == (0, f"{version} t:1:h\n"), done.err
    (tmp_path / "worker.py").write_text(script("local"))
    for url in (tmp_path, tmp_path / "worker.py", f"file://{tmp_path}"):
        r.hset("t:1:h", mapping={"version": "local", "url": str(url)})
        assert run("t", "1").out == "local t:1:h\n"


@pytest.mark.usefixtures("versions")
def test_a_pinned_version_is_fetched_once_and_a_branch_revalidated(r: redis.Redis, run: Runner, host: RawHost) -> None:
    r.hset("t:1:h", "version", "v1.0.0")
    for _ in range(2):
        assert run("t", "1").code == 0
    assert len(host.requests) == 1
    r.hset("t:1:h", "version", "main")
    for _ in range(2):
        assert run("t", "1").out == "main t:1:h\n"
    assert "if-none-match" in host.requests[-1][1]
    host.files[PATH.format("main")] = script("main moved")
    assert run("t", "1").out == "main moved t:1:h\n"
    assert len(host.requests) == 4


@pytest.mark.usefixtures("versions")
def test_a_moved_tag_never_runs_until_reload_says_so(r: redis.Redis, run: Runner, host: RawHost) -> None:
    r.hset("t:1:h", "version", "v1.0.0")
    assert run("t", "1").code == 0
    old, new = script("v1.0.0"), script("moved")
    host.files[PATH.format("v1.0.0")] = new
    assert run("t", "1").out == "v1.0.0 t:1:h\n"  # from the cache
    assert run("cache", "--clean").code == 0
    refused = run("t", "1")
    assert (refused.code, refused.out) == (65, "")
    for digest in (hashlib.sha256(text.encode()).hexdigest() for text in (old, new)):
        assert digest in refused.err
    assert "--reload" in refused.err
    assert len(refused.err.partition("hint: ")[0].splitlines()) == 1
    assert run("t", "1", "--reload").out == "moved t:1:h\n"
    assert run("t", "1").out == "moved t:1:h\n"


@pytest.mark.usefixtures("versions")
def test_the_hashs_sha256_is_checked(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    right = hashlib.sha256(script("v1.0.0").encode()).hexdigest()
    r.hset("t:1:h", mapping={"version": "v1.0.0", "sha256": right})
    assert run("t", "1").code == 0
    for version in ("v1.1.0", "main"):
        r.hset("t:1:h", "version", version)
        refused = run("t", "1")
        assert (refused.code, refused.out) == (65, "")
        assert right in refused.err
    (tmp_path / "worker.py").write_text(script("local"))
    r.hset("t:1:h", mapping={"version": "local", "url": str(tmp_path)})
    assert run("t", "1").code == 65


@pytest.mark.usefixtures("versions")
def test_a_gone_origin_is_survived_from_the_cache_with_a_warning(r: redis.Redis, run: Runner, host: RawHost) -> None:
    assert run("t", "1").code == 0
    host.close()
    done = run("t", "1")
    assert done.out == "main t:1:h\n"
    assert "warning: " in done.err
    assert "from the cache" in done.err
    r.hset("t:1:h", "version", "v1.0.0")
    never = run("t", "1")
    assert never.code == 69
    assert "cannot be reached" in never.err


@pytest.mark.usefixtures("versions")
def test_a_fault_of_the_server_is_survived_from_the_cache_and_a_404_is_not(
    r: redis.Redis, run: Runner, host: RawHost
) -> None:
    assert run("t", "1").code == 0
    host.files[PATH.format("main")] = body(b"oops", status=503)
    assert run("t", "1").out == "main t:1:h\n"
    del host.files[PATH.format("main")]
    gone = run("t", "1")
    assert (gone.code, gone.out) == (69, "")
    assert "404" in gone.err
    host.files[PATH.format("main")] = script("back")  # a 404 is not cached
    assert run("t", "1").out == "back t:1:h\n"


def test_an_odd_etag_is_not_sent_back(r: redis.Redis, run: Runner, host: RawHost) -> None:
    def answer(handler) -> None:  # type: ignore[no-untyped-def]
        handler.send_response(200)
        handler.send_header("ETag", '"\xe9\xff' + "x" * 1000)
        handler.end_headers()
        handler.wfile.write(script("odd").encode())

    host.files[PATH.format("main")] = answer
    r.hset("t:1:h", mapping={"url": host.url + PATH.format("{version}"), "version": "main"})
    for _ in range(2):
        assert run("t", "1").out == "odd t:1:h\n"
    assert "if-none-match" not in host.requests[1][1]


@pytest.mark.usefixtures("versions")
def test_cached_only_never_fetches(r: redis.Redis, run: Runner, host: RawHost) -> None:
    assert run("t", "1", "--cached-only").code == 69
    assert host.requests == []
    assert run("t", "1").code == 0
    host.files[PATH.format("main")] = script("moved")
    assert run("t", "1", "--cached-only").out == "main t:1:h\n"
    assert len(host.requests) == 1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (body(b"<!DOCTYPE html><html><body>Not found</body></html>"), "a page of HTML"),
        (body(b"<!DOCTYPE html>", "text/html"), "text/html"),
        (body(b"print('ran')", "text/html; charset=utf-8"), "text/html"),
        (body(b'{"message": "Not Found"}'), "does nothing"),
        (body(b"404: Not Found"), "not valid Python"),
        (body(b"error"), "does nothing"),
        (body(b""), "does nothing"),
        (body("print('é')".encode("latin-1")), "not UTF-8"),
        (body(b"print('ran')\0"), "not valid Python"),
        (body(b"(" * 5000), "not valid Python"),
        (body(b"a;" * 500_000), "MemoryError while parsing"),
        (body(b"print('ran')", status=404), "404"),
        (body(b"print('ran')", status=203), "203"),
        (body(b"print('ran')", status=206), "206"),
        (body(b"\x1f\x8b", encoding="gzip"), "compressed"),
    ],
)
def test_what_is_no_script_neither_runs_nor_is_cached(
    r: redis.Redis, run: Runner, host: RawHost, answer: object, why: str
) -> None:
    host.files["/v1/w.py"] = answer  # type: ignore[assignment]
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1"})
    done = run("t", "1")
    assert (done.code, done.out) == (69, "")
    assert why in done.err
    assert len(done.err.partition("hint: ")[0].splitlines()) == 1
    host.files["/v1/w.py"] = script("good")  # nothing wrong was pinned
    assert run("t", "1").out == "good t:1:h\n"


@pytest.mark.parametrize("length", [True, False])
def test_a_body_of_100_mb_is_refused_early(r: redis.Redis, run: Runner, host: RawHost, length: bool) -> None:
    sent = []

    def answer(handler: object) -> None:
        body(b"", length=False)
        handler.send_response(200)  # type: ignore[attr-defined]
        if length:
            handler.send_header("Content-Length", str(100 << 20))  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        for _ in range(100):
            handler.wfile.write(b"#" * (1 << 20))  # type: ignore[attr-defined]
            sent.append(1)

    host.files["/v1/w.py"] = answer  # type: ignore[assignment]
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1"})
    done = run("t", "1")
    assert done.code == 69
    assert "1 MiB" in done.err
    assert len(sent) < 50


def test_a_slow_drip_ends_at_the_deadline(host: RawHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "TOTAL_SECONDS", 1)
    host.files["/slow"] = drip
    with pytest.raises(FetchError, match="did not arrive within 1 s"):
        download_module.download(host.url + "/slow", allowed=ImportList.default(), etag=None, progress=lambda _: None)


def test_a_redirect_to_a_foreign_host_is_refused(r: redis.Redis, run: Runner, host: RawHost) -> None:
    for number, target in enumerate(
        ["https://evil.example/w.py", "http://192.0.2.1/w.py", "file:///etc/passwd", "//evil.example/w.py"]
    ):
        host.files[f"/v{number}/w.py"] = redirect(target)
        r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": f"v{number}"})
        done = run("t", "1")
        assert (done.code, done.out) == (69, "")
        assert "redirected from" in done.err


def test_redirects_are_followed_on_allowed_hosts_and_bounded(r: redis.Redis, run: Runner, host: RawHost) -> None:
    host.files["/v1/w.py"] = redirect("/elsewhere.py")
    host.files["/elsewhere.py"] = script("moved on")
    host.files["/v2/w.py"] = redirect("/v2/w.py")
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1"})
    assert run("t", "1").out == "moved on t:1:h\n"
    r.hset("t:1:h", "version", "v2")
    assert "redirects more than" in run("t", "1").err


def test_credentials_from_netrc_never_follow_a_redirect(r: redis.Redis, run: Runner, host: RawHost) -> None:
    with raw_host() as other:
        (run.home / ".netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
        host.files["/v1/w.py"] = redirect(other.url + "/w.py")
        other.files["/w.py"] = script("fetched")
        r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1"})
        assert run("t", "1").code == 0
        assert host.requests[0][1]["authorization"].startswith("Basic ")
        assert "authorization" not in other.requests[0][1]


def test_a_host_that_is_not_listed_is_refused_before_any_traffic(r: redis.Redis, run: Runner) -> None:
    r.hset("t:1:h", mapping={"url": "https://scripts.example/{version}/w.py", "version": "v1"})
    done = run("t", "1")
    assert done.code == 69
    assert "--allow-import=scripts.example" in done.err
    r.hset("t:1:h", "url", "http://raw.githubusercontent.com/o/r/{version}/w.py")
    assert "is not https" in run("t", "1").err


@pytest.mark.usefixtures("versions")
def test_a_tampered_blob_is_not_run(r: redis.Redis, run: Runner, host: RawHost) -> None:
    r.hset("t:1:h", "version", "v1.0.0")
    assert run("t", "1").code == 0
    blob = next((run.home / ".cache/sandboxrun/blobs").iterdir())
    assert blob.stat().st_mode & 0o222 == 0
    blob.chmod(0o600)
    blob.write_text("print('tampered')")
    assert run("t", "1").out == "v1.0.0 t:1:h\n"  # fetched again, against the pin
    assert len(host.requests) == 2
    blob.chmod(0o600)
    blob.write_text("print('tampered')")
    host.close()
    refused = run("t", "1")
    assert (refused.code, refused.out) == (69, "")


@pytest.mark.usefixtures("versions")
def test_a_cache_that_others_can_write_is_refused(r: redis.Redis, run: Runner) -> None:
    assert run("t", "1").code == 0
    (run.home / ".cache/sandboxrun/blobs").chmod(0o777)
    done = run("t", "1")
    assert done.code == 78
    assert "can be written by others" in done.err


@pytest.mark.usefixtures("versions")
def test_concurrent_first_runs_fetch_once_and_all_run(r: redis.Redis, run: Runner, host: RawHost) -> None:
    fields = r.hgetall("t:1:h") | {"version": "v1.0.0"}
    for number in range(2, 8):
        r.hset(f"t:{number}:h", mapping=fields)
    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(run.start("t", str(number), "--quiet")) for number in range(2, 8)]
        outputs = [process.communicate(timeout=60) for process in running]
    assert [out for out, _ in outputs] == [f"v1.0.0 t:{number}:h\n".encode() for number in range(2, 8)], outputs
    assert len(host.requests) == 1


@pytest.mark.usefixtures("versions")
def test_cache_shows_what_is_there_and_clean_removes_it(r: redis.Redis, run: Runner, host: RawHost) -> None:
    r.hset("t:1:h", "version", "v1.0.0")
    assert run("t", "1").code == 0
    shown = run("cache")
    assert "v1.0.0" in shown.out
    assert host.url in shown.out
    assert run("cache", "--clean").out.startswith("removed 1 script, ")
    assert "cleaned" in run("cache").out
    assert not list((run.home / ".cache/sandboxrun/blobs").iterdir())


def test_a_local_fifo_or_missing_script_is_one_line(r: redis.Redis, run: Runner, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    for url, text in [
        (tmp_path / "pipe", "not a file"),
        (tmp_path / "empty", "no worker.py"),
        (tmp_path / "no", "does not exist"),
        ("rel", "absolute"),
    ]:
        r.hset("t:1:h", mapping={"version": "local", "url": str(url)})
        done = run("t", "1")
        assert done.code in (69, 78)
        assert text in done.err
        assert len(done.err.partition("hint: ")[0].splitlines()) == 1


def test_modules_beside_a_cached_script_or_in_the_working_directory_are_not_imported(
    r: redis.Redis, run: Runner, host: RawHost
) -> None:
    host.files["/v1/w.py"] = (
        "import json, sys\nprint(json.__file__.endswith('/lib/python3.%d/json/__init__.py' % sys.version_info[1]))\n"
    )
    r.hset("t:1:h", mapping={"url": host.url + "/{version}/w.py", "version": "v1"})
    for folder in (run.home, run.home / ".cache/sandboxrun/blobs"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "json.py").write_text("print('planted')")
    for folder in (run.home / ".cache", run.home / ".cache/sandboxrun", run.home / ".cache/sandboxrun/blobs"):
        folder.chmod(0o700)
    run.env |= {"PYTHONPATH": "", "PYTHONSTARTUP": str(run.home / "json.py")}
    assert run("t", "1").out == "True\n"


def test_an_unreachable_port_names_the_url(r: redis.Redis, run: Runner) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        r.hset("t:1:h", mapping={"url": f"http://127.0.0.1:{sock.getsockname()[1]}/{{version}}/w.py", "version": "v1"})
        done = run("t", "1")
    assert done.code == 69
    assert "cannot be reached" in done.err


def test_nothing_is_left_in_scratch(r: redis.Redis, run: Runner, local: object) -> None:
    local("open('file', 'w').close()")  # type: ignore[operator]
    assert run("t", "1").code == 0
    assert list((run.home / ".cache/sandboxrun/scratch").iterdir()) == []


def test_deep_scratch_folders_are_removed(r: redis.Redis, run: Runner, local: object) -> None:
    local("import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')\n")  # type: ignore[operator]
    done = run("t", "1")
    assert done.code == 0, done.err
    assert subprocess.run(["ls", run.home / ".cache/sandboxrun/scratch"], capture_output=True, check=True).stdout == b""


def kept_code(run: Runner) -> dict[str, Path]:
    """The files of compiled code, by what their script says."""
    found = {}
    for path in (Path(run.home) / ".cache" / "sandboxrun" / "code").iterdir():
        found[next(word for word in marshal.loads(path.read_bytes()[32:]).co_consts if word)] = path
    return found


@pytest.mark.usefixtures("versions")
def test_compiled_code_is_kept_and_is_what_the_next_start_runs(r: redis.Redis, run: Runner) -> None:
    r.hset("t:1:h", "version", "v1.0.0")
    assert run("t", "1").out == "v1.0.0 t:1:h\n"
    [path] = kept_code(run).values()
    key = (Path(run.home) / ".local/state/sandboxrun/key").read_bytes()
    name = r.hget("t:1:h", "url").replace("{version}", "v1.0.0")
    other = compile("print('of the kept code')\nraise SystemExit(3)", name, "exec", dont_inherit=True)
    path.chmod(0o600)
    path.write_bytes(sealed(marshal.dumps(other), key, path.name))
    done = run("t", "1")
    assert (done.code, done.out) == (3, "of the kept code\n")


@pytest.mark.usefixtures("versions")
def test_code_that_was_changed_swapped_or_sealed_by_another_is_not_run_but_made_anew(
    r: redis.Redis, run: Runner, host: RawHost
) -> None:
    for version in ("v1.0.0", "v1.1.0"):
        r.hset("t:1:h", "version", version)
        assert run("t", "1").code == 0
    fetched = len(host.requests)
    mine, other = (kept_code(run)[version] for version in ("v1.1.0", "v1.0.0"))
    good, hostile = mine.read_bytes(), marshal.dumps(compile("print('hostile')", "x", "exec"))
    for data in (
        other.read_bytes(),
        bytes([good[0] ^ 1]) + good[1:],
        good[:-1] + bytes([good[-1] ^ 1]),
        good[:40],
        b"",
        sealed(hostile, bytes(32), mine.name),
        hostile,
    ):
        mine.write_bytes(data)
        assert run("t", "1").out == "v1.1.0 t:1:h\n"
        assert mine.read_bytes() == good
    assert len(host.requests) == fetched
    assert run("cache", "--clean").code == 0
    assert not any(mine.parent.iterdir())


def test_a_traceback_of_kept_code_shows_the_script_and_its_url(r: redis.Redis, run: Runner, host: RawHost) -> None:
    host.files[PATH.format("v1.0.0")] = "def fail():\n    raise ValueError('on purpose')\nfail()\n"
    r.hset("t:1:h", mapping={"url": host.url + PATH.format("{version}"), "version": "v1.0.0"})
    for _ in range(2):
        done = run("t", "1")
        assert done.code == 1
        assert f'File "{host.url}{PATH.format("v1.0.0")}", line 2, in fail' in done.err
        assert "    raise ValueError('on purpose')" in done.err
