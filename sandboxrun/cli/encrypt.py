"""sandboxrun encrypt."""

from __future__ import annotations

import json
import os
import sys

from sandboxrun.cli.parser import Parser
from sandboxrun.errors import ConfigError, SandboxrunError, UsageError


def main(args: list[str]) -> int:
    parser = Parser(
        prog="sandboxrun encrypt",
        description="Encrypt the JSON object on standard input for one worker. Prints a Redis command: pipe it into redis-cli.",
        epilog='example:\n  echo \'{"token":"t"}\' | sandboxrun encrypt demo-worker 1 --key-file demo.key | redis-cli\n'
        "  sandboxrun demo-worker 1 < demo.key",
    )
    parser.add_argument("type", metavar="TYPE")
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        required=True,
        help="the line worker-v0 HEX; made, for you alone to read, if it does not exist",
    )
    parser.add_argument(
        "--alg",
        metavar="ALG",
        default="aes-256-gcm",
        help="aes-256-gcm (default), or as openssl enc has it: aes-128-cbc, aes-192-cbc, aes-256-cbc",
    )
    parser.add_argument("--json", action="store_true", help="print the fields as a JSON object instead")
    options = parser.parse_args(args)

    from sandboxrun.config import keys, secrets

    worker_key = keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
    if options.alg not in secrets.ALGORITHMS:
        raise UsageError(f"--alg is {options.alg!r}: expected one of {', '.join(secrets.ALGORITHMS)}")
    try:
        plain = json.loads(sys.stdin.buffer.read(1024 * 1024))
    except ValueError:
        plain = None
    if not isinstance(plain, dict):
        raise ConfigError(
            'standard input is not a JSON object: give the secrets as one, as in echo \'{"token":"t"}\' | sandboxrun encrypt …'
        )
    key = _key_from_file(options.key_file, options.alg)
    fields = secrets.encrypt(plain, key, worker_key=worker_key, type_=options.type, algorithm=options.alg)
    if options.json:
        print(json.dumps(fields))
    else:
        print("HSET", worker_key, *(word for pair in fields.items() for word in pair))
    return 0


def _key_from_file(path: str, algorithm: str) -> bytes:
    from sandboxrun.config import secrets

    try:
        # O_EXCL: a key that is there is used, never overwritten.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        try:
            with open(path, "rb") as file:
                return secrets.parse_key_line(file.read(secrets.KEY_LINE_MAX_BYTES))
        except SandboxrunError as error:
            raise ConfigError(
                f"{path} does not hold a key: expected the line worker-v0 HEX; remove it to have one made"
            ) from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from error
    with open(fd, "wb") as file:
        key = os.urandom(secrets.key_bytes(algorithm))
        file.write(b"worker-v0 " + key.hex().encode() + b"\n")
    return key
