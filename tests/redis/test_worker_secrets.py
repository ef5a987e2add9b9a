"""What a worker reads of its secrets, and who else sees the key."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import redis
from runner import Runner

Local = Callable[..., Path]
LONG = "import time\nprint('ready', flush=True)\ntime.sleep(60)\n"

SECRET = """
from sandboxrun import worker
import sys
try:
    print(worker.secrets()["token"])
except Exception as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(78)
"""
KEY = "00112233445566778899aabbccddeeff" * 2


def openssl(secrets: dict[str, str], key: str, iv: str) -> str:
    bits = len(key) * 4
    return subprocess.run(
        ["openssl", "enc", f"-aes-{bits}-cbc", "-K", key, "-iv", iv, "-base64"],
        input=json.dumps(secrets), text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip


@pytest.mark.parametrize("digits", [32, 48, 64])
@pytest.mark.parametrize("named", [True, False])
def test_what_openssl_encrypts_is_decrypted(
    r: redis.Redis, run: Runner, local: Local, digits: int, named: bool
) -> None:
    key, iv = KEY[:digits], "0f" * 16
    text = openssl({"type": "t", "token": "s3cret-token" * 10}, key, iv)
    local(SECRET, encryptedIv=iv, encryptedJson=text, **({"encryptedAlg": f"aes-{digits * 4}-cbc"} if named else {}))
    done = run("t", "1", stdin=f"worker-v0 {key}\n")
    assert (done.code, done.out) == (0, "s3cret-token" * 10 + "\n"), done.err


def test_wrong_key_truncated_text_and_wrong_type_are_one_line_each(r: redis.Redis, run: Runner, local: Local) -> None:
    iv = "0f" * 16
    right = openssl({"type": "t", "token": "x"}, KEY, iv)
    data = base64.b64decode(right)
    cases = [
        (right, "ff" * 32, "key on standard input"),
        (base64.b64encode(data[:-3]).decode(), KEY, "truncated"),
        (openssl({"type": "other", "token": "x"}, KEY, iv), KEY, "not for this type"),
        ("%%%", KEY, "not base64"),
        (right, KEY[:32], "needs a key of 64"),
    ]
    for text, key, message in cases:
        local(SECRET, encryptedAlg="aes-256-cbc", encryptedIv=iv, encryptedJson=text)
        done = run("t", "1", "--quiet", stdin=f"worker-v0 {key}\n")
        assert (done.code, done.out) == (78, "")
        assert message in done.err
        assert len(done.err.splitlines()) == 1
        assert key not in done.err


@pytest.mark.parametrize(
    "line", ["", "worker-v0\n", "worker-v0 xyz\n", "worker-v0 abcd\n", "worker-v1 " + KEY + "\n", KEY + "\n", "\xff\n"]
)
def test_a_bad_key_line_is_one_line_and_never_shown(r: redis.Redis, run: Runner, local: Local, line: str) -> None:
    local(SECRET, encryptedIv="0f" * 16, encryptedJson="AAAA")
    done = run("t", "1", stdin=line)
    assert (done.code, done.out) == (78, "")
    assert len(done.err.partition("hint: ")[0].splitlines()) == 1
    assert "worker-v0 HEX" in done.err or "hexadecimal digits" in done.err
    assert KEY not in done.err


def test_encrypt_writes_what_a_worker_reads_and_binds_it_to_the_worker(
    r: redis.Redis, run: Runner, local: Local
) -> None:
    key_file = run.home / "key"
    for algorithm in ("aes-256-gcm", "aes-256-cbc"):
        made = run(
            "encrypt", "t", "1", "--key-file", str(key_file), "--alg", algorithm, "--json", stdin='{"token": "s3"}'
        )
        assert made.code == 0, made.err
        assert key_file.stat().st_mode & 0o777 == 0o600
        fields = json.loads(made.out)
        local(SECRET, **fields)
        assert run("t", "1", stdin=key_file.read_text()).out == "s3\n"
        local(SECRET, key="t:2:h", **fields)
        moved = run("t", "2", "--quiet", stdin=key_file.read_text())
        assert moved.code == (78 if algorithm == "aes-256-gcm" else 0)
    plain = run("encrypt", "t", "1", "--key-file", str(key_file), stdin='{"token": "s3"}').out
    assert plain.startswith("HSET t:1:h encryptedAlg aes-256-gcm encryptedIv ")
    assert run("encrypt", "t", "1", "--key-file", str(key_file), stdin="[]").code == 78
    assert run("encrypt", "t", "1", "--key-file", str(key_file), stdin='{"type": "other"}').code == 78


def test_the_key_appears_in_no_process_and_no_log(r: redis.Redis, run: Runner, local: Local) -> None:
    made = run("encrypt", "t", "1", "--key-file", str(run.home / "key"), "--json", stdin='{"token": "s3"}')
    key = (run.home / "key").read_text().split()[1]
    local("from sandboxrun import worker\nworker.secrets()\n" + LONG, **json.loads(made.out))
    with subprocess.Popen(
        run.command("t", "1", "--debug"),
        env=run.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"worker-v0 {key}\n".encode())
        process.stdin.flush()
        assert process.stdout.readline() == b"ready\n"
        pid = int(r.hget("t:1:h", "pid"))
        processes = [Path(f"/proc/{p}") for p in (pid, process.pid)]
        arguments = b"".join((p / "cmdline").read_bytes() for p in processes)
        environments = b"".join((p / "environ").read_bytes() for p in processes)
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert b"t:1:h" in arguments  # what was read is what it should be
    assert b"LANG=" in environments
    assert key.encode() not in arguments + environments + err
    password = run.env["REDIS_URL"].partition("@")[0].rpartition(":")[2].encode()
    assert len(password) == 32
    assert password not in arguments + err
    assert not any(key in str(r.hgetall(name)) for name in r.keys("*:h"))
