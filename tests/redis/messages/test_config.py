"""Each hint about a hash, followed in the situation in which it is given."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from following import RAN, Stage, follow, is_made_from
from hints import hint_of, paste, templates
from raw_host import RawHost
from runner import Runner

SET = "sandboxrun set {} {}"
KEY_FILE = "sandboxrun {} <KEYFILE"
ENCRYPT = "sandboxrun encrypt {} --key-file KEYFILE --write <JSONFILE"
REMOVE = 'redis-cli -u "$REDIS_URL" DEL {}'
DIGEST = "sandboxrun set {} sha256=$(sha256sum FILE | cut -c-64)"

# name: (what is wrong with the hash, the error, the placeholders of the hint)
SET_SITUATIONS: dict[str, tuple[dict[str, str | bytes | None], str, dict[str, str]]] = {
    "no url": ({"url": None}, "t:1:h has no url", {"URL": "."}),
    "no version": ({"version": ""}, "t:1:h has no version", {"VERSION": "local"}),
    "bad version": ({"version": "../x"}, "field version of t:1:h is '../x'", {"VERSION": "local"}),
    "version with a slash": ({"version": "refs/tags/"}, "field version of t:1:h is 'refs/tags/'", {"VERSION": "local"}),
    "type": ({"type": "other"}, "field type of t:1:h is 'other', but the key says 't'", {}),
    "two names": ({"workerVersion": "main"}, "t:1:h has both version and workerVersion", {}),
    "not UTF-8": ({"requestLimit": b"\xff"}, "field requestLimit of t:1:h is not UTF-8 text (byte 0)", {"TEXT": "1"}),
    "quote": ({"requestStream": "t:'req:x"}, "field requestStream of t:1:h has '", {}),
    "no key name": ({"consumerId": "a b"}, "field consumerId of t:1:h is not a key name", {}),
    "no service's name": ({"services": "price, Stock"}, "field services of t:1:h has 'Stock'", {}),
    "number": ({"requestLimit": "many"}, "field requestLimit of t:1:h is 'many'", {}),
    "spelt": ({"limit_memory": "1G"}, "field limit_memory of t:1:h is spelt limitMemory", {}),
    "near permission": ({"denyNets": "example.com"}, "field denyNets of t:1:h is not a permission", {}),
    "unknown permission": ({"allowFfi": "x"}, "field allowFfi of t:1:h is not a permission", {}),
    "near limit": ({"limitMemori": "1G"}, "field limitMemori of t:1:h is not a limit", {}),
    "unknown limit": ({"limitWorld": "1"}, "field limitWorld of t:1:h is not a limit", {}),
    "near flag": ({"options": "--quiet --deny-nte=example.com"}, "'--deny-nte=example.com' in field options", {}),
    "unknown flag": ({"options": "--quiet --allow-ffi=x"}, "'--allow-ffi=x' in field options of t:1:h is not", {}),
    "all": ({"options": "--allow-net --quiet"}, "'--allow-net' in field options of t:1:h would allow everything", {}),
    "really all": ({"denoOptions": "-A"}, "'-A' in field denoOptions of t:1:h would allow everything", {}),
    "no flag": ({"options": "allow-net=x --quiet"}, "field options of t:1:h has 'allow-net=x'", {}),
    "a url for a host": (
        {"allowNet": "https://api.example/v1,http://b.example:8080/,c.example:80"},
        "field allowNet of t:1:h has 'https://api.example/v1'",
        {},
    ),
    "a folder in the home": ({"denyRead": "~/x"}, "field denyRead of t:1:h has '~/x'", {}),
    "a port": ({"denyListen": "8000,:8001"}, "field denyListen of t:1:h has '8000'", {}),
    "a variable": ({"denyEnv": "$TERM,LESS=-R"}, "field denyEnv of t:1:h has '$TERM'", {}),
    "a limit": ({"limitMemory": "much"}, "field limitMemory of t:1:h is 'much'", {}),
    "limit's flag": ({"options": "--limit-memry=1G"}, "field options of t:1:h has '--limit-memry=1G'", {}),
}


# name: what the hash has afterwards
RENAMED = {
    "a url for a host": {"allowNet": "api.example:443,b.example:8080,c.example:80"},
    "a folder in the home": {"denyRead": "{home}/x"},
    "a port": {"denyListen": "127.0.0.1:8000,127.0.0.1:8001"},
    "a variable": {"denyEnv": "TERM,LESS"},
    "a limit": {"limitMemory": "4G"},
    "no service's name": {"services": "price"},
    "spelt": {"limitMemory": "1G"},
    "near permission": {"denyNet": "example.com"},
    "near limit": {"limitMemory": "1G"},
}


@pytest.fixture
def stage(r: redis.Redis, run: Runner, host: RawHost, tmp_path: Path) -> Stage:
    (tmp_path / "w").mkdir()
    return Stage(r, run, host, tmp_path / "w")


@pytest.mark.parametrize("name", SET_SITUATIONS)
def test_a_field_is_set_as_the_hint_says(stage: Stage, name: str) -> None:
    fields, error, placeholders = SET_SITUATIONS[name]
    stage.local(**{field: value for field, value in fields.items() if isinstance(value, str)})
    for field, value in fields.items():
        if value is None:
            stage.r.hdel("t:1:h", field)
        elif isinstance(value, bytes):
            stage.r.hset("t:1:h", field, value)  # type: ignore[arg-type]
    stage.placeholders = {word: str(stage.folder) if value == "." else value for word, value in placeholders.items()}
    follow(stage, stage.again(), SET, error)
    after = RENAMED.get(name, {})
    assert {field: stage.r.hget("t:1:h", field) for field in after} == {
        field: value.replace("{home}", str(stage.run.home)) for field, value in after.items()
    }


def test_what_is_meant_is_never_guessed(stage: Stage) -> None:
    for fields in ({"allowNet": "https://u:p@h.example"}, {"allowRead": "data"}, {"options": "--allow-net=http://h"}):
        stage.local(**fields)
        done = stage.run("t", "1")
        assert done.code == 78 and "hint:" not in done.err, done
        stage.r.delete("t:1:h")


def test_a_misspelt_denial_that_is_too_long_is_an_error(stage: Stage) -> None:
    stage.local(denynet="example.com," * 10_000)
    done = stage.run("t", "1")
    assert (done.code, done.out) == (78, "") and "field denynet of t:1:h has 120000 bytes" in done.err, done


def test_a_hash_is_made_as_the_hint_says(stage: Stage) -> None:
    (stage.folder / "worker.py").write_text(RAN)
    stage.placeholders = {"URL": str(stage.folder), "VERSION": "local"}
    follow(stage, stage.again(), SET, "t:1:h does not exist")


def test_options_under_two_names_become_one(stage: Stage) -> None:
    stage.local(options="--quiet", denoOptions="--no-prompt")
    follow(stage, stage.again(), SET, "t:1:h has both denoOptions and options, and they differ")
    assert stage.r.hget("t:1:h", "options") == "--quiet"


def test_a_url_is_percent_encoded(stage: Stage) -> None:
    stage.host.files["/v1/caf%C3%A9%20w.py"] = RAN
    stage.r.hset("t:1:h", mapping={"url": stage.host.url + "/{version}/café w.py", "version": "v1"})
    follow(stage, stage.again(), SET, "has a space, a control or a non-ASCII character")


def test_a_folder_may_have_a_space(stage: Stage) -> None:
    folder = stage.folder / "my wörker"
    folder.mkdir()
    (folder / "worker.py").write_text(RAN)
    stage.r.hset("t:1:h", mapping={"url": str(folder), "version": "local"})
    assert stage.run("t", "1").code == 0


def test_a_key_that_is_no_hash_is_removed(stage: Stage) -> None:
    stage.local()
    stage.r.set("t:h", "x")
    stage.run.env["REDIS_URL"] = stage.run.env["REDIS_URL"].replace("//:", "//default:")  # as redis-cli reads it
    follow(stage, stage.again(), REMOVE, "t:h is a string, not a hash")


def test_a_digest_is_made(stage: Stage) -> None:
    stage.local(sha256="0123")
    stage.placeholders = {"FILE": str(stage.folder / "worker.py")}
    follow(stage, stage.again(), DIGEST, "field sha256 of t:1:h is '0123'")
    assert stage.r.hget("t:1:h", "sha256") == hashlib.sha256(RAN.encode()).hexdigest()


def with_secrets(stage: Stage) -> Path:
    """A worker that prints a secret, and the file of its key."""
    (stage.folder / "worker.py").write_text("from sandboxrun import worker\nprint(worker.secrets()['token'])\n")
    stage.r.hset("t:1:h", mapping={"url": str(stage.folder), "version": "local"})
    path = stage.folder / "my.key"
    assert stage.run("encrypt", "t", "1", "--key-file", str(path), "--write", stdin='{"token": "t0ken"}').code == 0
    return path


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ("", 78, "standard input has no key"),
        ("t0ken\n", 78, "is not one line of the form worker-v0 HEX"),
        ("worker-v0 1234\n", 78, "the key on standard input has 4 hexadecimal digits"),
        (f"worker-v0 {'0' * 32}\n", 1, "needs a key of 64 hexadecimal digits, but standard input has 32"),
        (f"worker-v0 {'0' * 64}\n", 1, "encryptedJson of t:1:h does not decrypt"),
    ],
)
def test_the_key_comes_from_its_file(stage: Stage, line: str, code: int, error: str) -> None:
    path = with_secrets(stage)
    done = stage.run("t", "1", stdin=line)
    assert done.code == code and error in done.err
    hint = hint_of(done.err)
    assert is_made_from(KEY_FILE, hint)
    followed = paste(hint, stage.run.env, stage.folder, KEYFILE=str(path))
    assert (followed.returncode, followed.stdout) == (0, "t0ken\n"), followed


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("encryptedAlg", "rot13", "field encryptedAlg of t:1:h is 'rot13': expected one of"),
        ("encryptedIv", "0", "field encryptedIv of t:1:h is not 24 hexadecimal digits"),
        ("encryptedJson", "=", "encryptedJson of t:1:h is not base64"),
    ],
)
def test_secrets_are_encrypted_again(stage: Stage, field: str, value: str, error: str) -> None:
    path = with_secrets(stage)
    (stage.folder / "secrets.json").write_text('{"token": "an0ther"}')
    stage.r.hset("t:1:h", field, value)
    done = stage.run("t", "1", stdin=path.read_text())
    assert done.code == 1 and error in done.err
    hint = hint_of(done.err)
    assert is_made_from(ENCRYPT, hint)
    followed = paste(hint, stage.run.env, stage.folder, KEYFILE=str(path), JSONFILE="secrets.json")
    assert followed.returncode == 0, followed
    assert stage.run("t", "1", stdin=path.read_text()).out == "an0ther\n"


SITUATIONS: dict[str, Callable[..., None]] = {
    SET: test_a_field_is_set_as_the_hint_says,
    REMOVE: test_a_key_that_is_no_hash_is_removed,
    DIGEST: test_a_digest_is_made,
    ENCRYPT: test_secrets_are_encrypted_again,
    KEY_FILE: test_the_key_comes_from_its_file,
}
ELSEWHERE: dict[str, str] = {}


def test_every_hint_is_followed_or_listed() -> None:
    assert set(templates("config")) == {*SITUATIONS, *ELSEWHERE}
