"""sandboxrun encrypt."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys

from sandboxrun.cli.parser import Parser, connect_option
from sandboxrun.errors import ConfigError, SandboxrunError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

INPUT_MAX_BYTES = 1024 * 1024
_EPILOG = """\
examples:
  echo '{"token":"t"}' | sandboxrun encrypt demo-worker 1 --key-file demo.key --write
  sandboxrun demo-worker 1 < demo.key
  echo '{"token":"t"}' | sandboxrun encrypt demo-worker 1 --key-file demo.key | redis-cli

All secrets of a worker are one JSON object, so each call replaces all of them.
"""


def main(args: list[str]) -> int:
    options = _parser().parse_args(args)

    from sandboxrun.config import keys, secrets

    worker_key = keys.worker_key(keys.check_type(options.type), keys.check_id(options.id))
    if options.alg not in secrets.ALGORITHMS:
        raise UsageError(
            f"--alg is {options.alg[:80]!r}: expected one of {', '.join(secrets.ALGORITHMS)}",
            hint=_secrets_hint(options),
        )
    plain = _plain(options)
    key = _key_from_file(options.key_file, options.alg)
    fields = secrets.encrypt(plain, key, worker_key=worker_key, type_=options.type, algorithm=options.alg)
    if options.write:
        _write(options, worker_key, fields)
    elif options.json:
        print(json.dumps(fields))
    else:
        print("HSET", worker_key, *(word for pair in fields.items() for word in pair))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="sandboxrun encrypt",
        description="Encrypt the JSON object on standard input for one worker, and write it into the worker's hash (--write) "
        "or print the Redis command that writes it.",
        epilog=_EPILOG,
    )
    parser.add_argument("type", metavar="TYPE")
    parser.add_argument("id", metavar="ID")
    parser.add_argument(
        "--key-file",
        metavar="FILE",
        required=True,
        help="holds the key, as the line worker-v0 HEX; if the file does not exist, it is made with a new key, mode 600",
    )
    parser.add_argument("--write", action="store_true", help="write the encrypted fields into TYPE:ID:h")
    parser.add_argument(
        "--alg",
        metavar="ALG",
        default="aes-256-gcm",
        help="aes-256-gcm (default), or a cipher of openssl enc: aes-128-cbc, aes-192-cbc, aes-256-cbc",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    connect_option(parser)
    return parser


def _plain(options: argparse.Namespace) -> dict[str, object]:
    """The secrets on standard input. Raises ConfigError."""
    data = sys.stdin.buffer.read(INPUT_MAX_BYTES + 1)
    if len(data) > INPUT_MAX_BYTES:
        raise ConfigError(f"standard input has more than {INPUT_MAX_BYTES >> 20} MiB: the secrets are too large")
    if not data.strip():
        raise ConfigError("standard input is empty: expected the secrets as a JSON object", hint=_secrets_hint(options))
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        plain = None
    if not isinstance(plain, dict):
        raise ConfigError("standard input is not a JSON object", hint=_secrets_hint(options))
    return plain


def _secrets_hint(options: argparse.Namespace) -> str:
    write = " --write" if options.write else ""
    file = shlex.quote(options.key_file)
    return f"""echo '{{"NAME":"VALUE"}}' | sandboxrun encrypt {options.type} {options.id} --key-file {file}{write}"""


def _write(options: argparse.Namespace, key: str, fields: Mapping[str, str]) -> None:
    """Into the hash, which need not be there yet. Raises ConfigError, StoreError."""
    from sandboxrun.cli.redis import connected
    from sandboxrun.config.worker import not_a_hash
    from sandboxrun.log import escape

    with connected(options.redis) as connection:
        kind = connection.call("TYPE", key)
        if kind not in (b"hash", b"none"):
            raise not_a_hash(key, kind.decode("ascii", "replace"))
        connection.call("HSET", key, *(word for pair in fields.items() for word in pair))
    start = f"sandboxrun {options.type} {options.id} < {shlex.quote(options.key_file)}"
    if options.json:
        print(json.dumps({"key": key, "written": True, "fields": list(fields), "next": [start]}))
    else:
        print(escape(f"{key}: wrote {', '.join(fields)}"))
        print(escape(f"next: {start}"))


def _key_from_file(path: str, algorithm: str) -> bytes:
    """The key in the file, or a new one in a new file. Raises ConfigError."""
    from sandboxrun.config import secrets

    try:
        # O_EXCL: an existing key is used, and never overwritten.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        try:
            with open(path, "rb") as file:
                return secrets.parse_key_line(file.read(secrets.KEY_LINE_MAX_BYTES))
        except SandboxrunError as error:
            raise ConfigError(
                f"{path} does not hold a key: expected the line worker-v0 HEX",
                hint=f"mv -n {shlex.quote(path)} {shlex.quote(path + '.old')}",
            ) from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be made: {error.strerror}") from error
    with open(fd, "wb") as file:
        key = os.urandom(secrets.key_bytes(algorithm))
        file.write(b"worker-v0 " + key.hex().encode() + b"\n")
    return key
