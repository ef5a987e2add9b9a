"""Each hint about a script and where it comes from, followed in the situation in which it is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from following import RAN, Stage, follow
from hints import hint_of, paste, templates
from raw_host import RawHost, body
from runner import Runner

URL = "sandboxrun set {} {}"


@pytest.fixture
def stage(r: redis.Redis, run: Runner, host: RawHost, tmp_path: Path) -> Stage:
    (tmp_path / "w").mkdir()
    return Stage(r, run, host, tmp_path / "w")


def test_what_is_not_in_the_cache_is_fetched(stage: Stage) -> None:
    stage.remote()
    follow(stage, stage.again("--cached-only"), "sandboxrun TYPE ID", "is not in the cache, and --cached-only forbids")


def test_a_tag_that_moved_is_accepted(stage: Stage) -> None:
    stage.remote()
    assert stage.run("t", "1").code == 0
    stage.host.files["/v1.0.0/w.py"] = RAN + "#"
    assert stage.run("cache", "--clean").code == 0
    follow(stage, stage.again(), "sandboxrun TYPE ID --reload", "has changed under version v1.0.0")


def test_a_cache_that_others_can_write_is_closed(stage: Stage) -> None:
    stage.remote()
    (stage.run.home / ".cache/sandboxrun").mkdir(parents=True)
    (stage.run.home / ".cache/sandboxrun").chmod(0o777)
    follow(stage, stage.again(), "chmod 700 {}", f"the folder {stage.run.home}/.cache/sandboxrun can be written by")


def test_a_damaged_pin_is_removed(stage: Stage) -> None:
    stage.remote()
    assert stage.run("t", "1").code == 0
    [pin] = [path for path in (stage.run.home / ".local/state/sandboxrun/pins").iterdir() if path.suffix != ".lock"]
    pin.chmod(0o600)
    pin.write_text("{")
    follow(stage, stage.again(), "rm -f {}", f"the pin {pin} of {stage.host.url}/v1.0.0/w.py is damaged")


def test_another_version_is_set(stage: Stage) -> None:
    stage.remote()
    stage.r.hset("t:1:h", "version", "v2.0.0")
    stage.placeholders = {"VERSION": "v1.0.0"}
    follow(stage, stage.again(), "sandboxrun set TYPE ID version=VERSION", "answers 404 Not Found")


@pytest.mark.parametrize("kind", ["text/html", "text/plain"])
def test_the_raw_url_is_set(stage: Stage, kind: str) -> None:
    stage.remote()
    stage.host.files["/v1.0.0/page"] = body(b"<html>", kind)
    stage.r.hset("t:1:h", "url", stage.host.url + "/{version}/page")
    stage.placeholders = {"RAW_URL": "'" + stage.host.url + "/{version}/w.py'"}
    follow(stage, stage.again(), "sandboxrun set TYPE ID url=RAW_URL", "not a Python script")


def test_the_digest_of_what_came_is_set(stage: Stage) -> None:
    stage.local(sha256="0" * 64)
    follow(stage, stage.again(), "sandboxrun set TYPE ID sha256={}", f"but field sha256 pins {'0' * 64}")
    assert stage.r.hget("t:1:h", "sha256") == hashlib.sha256(RAN.encode()).hexdigest()


@pytest.mark.parametrize(
    ("url", "version", "error", "placeholders"),
    [
        ("{host}/w.py", "v1.0.0", "does not say where the version belongs", {"PATH": "x", "FILE": "w.py"}),
        ("{host}/{{version}}/w.py#L1", "v1.0.0", "has the fragment #L1", {}),
        ("file://elsewhere{folder}", "local", "which names another host: expected file:///PATH", {}),
        ("{folder}/empty", "local", "/empty has no worker.py", {"FILE": "other.py"}),
        ("{folder}/none", "local", "/none does not exist", {"FOLDER": "{folder}"}),
    ],
)
def test_a_url_is_set(stage: Stage, url: str, version: str, error: str, placeholders: dict[str, str]) -> None:
    stage.local()
    stage.host.files["/x/v1.0.0/w.py"] = stage.host.files["/v1.0.0/w.py"] = RAN
    (stage.folder / "empty").mkdir()
    (stage.folder / "empty" / "other.py").write_text(RAN)
    stage.r.hset("t:1:h", mapping={"url": url.format(host=stage.host.url, folder=stage.folder), "version": version})
    stage.placeholders = {word: value.format(folder=stage.folder) for word, value in placeholders.items()}
    follow(stage, stage.again(), URL, error)


def test_a_path_is_completed(stage: Stage) -> None:
    stage.local()
    (stage.folder / "my worker").mkdir()
    (stage.folder / "my worker" / "worker.py").write_text(RAN)
    stage.r.hset("t:1:h", "url", "my worker")
    follow(stage, stage.again(), 'sandboxrun set {} url="$PWD"/{}', "expected an absolute path to a folder")


def test_a_url_is_not_local(stage: Stage) -> None:
    stage.remote()
    stage.r.hset("t:1:h", "version", "local")
    stage.placeholders = {"VERSION": "v1.0.0"}
    follow(stage, stage.again(), "sandboxrun set {} version=VERSION", "but version is local")


def test_a_folder_is_local(stage: Stage) -> None:
    stage.local(version="v1.0.0")
    stage.placeholders = {"FOLDER": str(stage.folder)}
    follow(stage, stage.again(), "sandboxrun set {} url=FOLDER version=local", "expected https://…, or a folder")


SITUATIONS: dict[str, Callable[..., None]] = {
    "sandboxrun TYPE ID": test_what_is_not_in_the_cache_is_fetched,
    "sandboxrun TYPE ID --reload": test_a_tag_that_moved_is_accepted,
    "chmod 700 {}": test_a_cache_that_others_can_write_is_closed,
    "rm -f {}": test_a_damaged_pin_is_removed,
    "sandboxrun set TYPE ID version=VERSION": test_another_version_is_set,
    "sandboxrun set TYPE ID url=RAW_URL": test_the_raw_url_is_set,
    "sandboxrun set TYPE ID sha256={}": test_the_digest_of_what_came_is_set,
    URL: test_a_url_is_set,
    'sandboxrun set {} url="$PWD"/{}': test_a_path_is_completed,
    "sandboxrun set {} version=VERSION": test_a_url_is_not_local,
    "sandboxrun set {} url=FOLDER version=local": test_a_folder_is_local,
}
ELSEWHERE = {
    "sandboxrun set {} version=main": "of a gist, which is on GitHub's host",
    "sandboxrun set {} version=COMMIT": "of jsDelivr's host",
    "sandboxrun TYPE ID --allow-import={}": "of a host that is not this machine, which always may",
    "export XDG_CACHE_HOME=CACHE XDG_STATE_HOME=STATE": "a folder of another user's, which needs root to make",
}


def test_every_hint_is_followed_or_listed() -> None:
    assert {*templates("fetch"), URL} == {*SITUATIONS, *ELSEWHERE}  # URL: of keys.set_hint


def test_a_host_that_a_hash_names_runs_nothing_in_a_shell(stage: Stage) -> None:
    stage.r.hset("t:1:h", mapping={"url": "https://x$(id>pwned)/{version}/w.py", "version": "v1.0.0"})
    hint = hint_of(stage.run("t", "1").err)
    assert hint.startswith("sandboxrun t 1 --allow-import='x$(id>")
    paste(hint, stage.run.env, stage.folder)
    assert not (stage.folder / "pwned").exists()
