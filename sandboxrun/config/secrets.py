"""Secrets at rest: a JSON object in a worker's hash, encrypted with a key that only standard input carries.

The only importer of cryptography. `encryptedAlg` chooses the form:

aes-128-cbc, aes-192-cbc, aes-256-cbc   as `openssl enc -K HEX -iv HEX -base64` writes it: PKCS7, not authenticated
aes-256-gcm                             a form of this project: 12-byte IV, the 16-byte tag behind the ciphertext, and the
                                        worker's key as associated data, so that no ciphertext can be moved to another worker
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from sandboxrun.config import keys
from sandboxrun.errors import SecretError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KEY_LINE_MAX_BYTES = 256
_KEY_LINE = r"worker-v0 ([0-9a-fA-F]+)\s*"
_KEY_BYTES = {"aes-128-cbc": 16, "aes-192-cbc": 24, "aes-256-cbc": 32, "aes-256-gcm": 32}
ALGORITHMS = tuple(_KEY_BYTES)


def parse_key_line(line: bytes) -> bytes:
    """The AES key (16, 24 or 32 bytes) in the line `worker-v0 HEX`. Raises SecretError; its text never has the line."""
    import re

    if not line.strip():
        raise SecretError("standard input has no key: expected the line worker-v0 HEX")
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    match = re.fullmatch(_KEY_LINE, text)
    if match is None:
        raise SecretError("the key on standard input is not one line of the form worker-v0 HEX")
    if len(match[1]) not in (32, 48, 64):
        raise SecretError(
            f"the key on standard input has {len(match[1])} hexadecimal digits: expected 32, 48 or 64 (AES-128, -192, -256)"
        )
    return bytes.fromhex(match[1])


def decrypt(fields: Mapping[str, str], key: bytes, *, worker_key: str, type_: str) -> dict[str, Any]:
    """The object in `encryptedJson`, whose `type` must be `type_`. Raises SecretError; its text has neither key nor secret."""
    where = f"encryptedJson of {worker_key}"
    algorithm = _algorithm(fields.get("encryptedAlg"), key, worker_key)
    iv = _unhex(fields.get("encryptedIv", ""), 12 if algorithm == "aes-256-gcm" else 16, worker_key)
    import base64

    try:
        data = base64.b64decode("".join(fields.get("encryptedJson", "").split()), validate=True)
    except ValueError as error:
        raise SecretError(f"{where} is not base64", hint=_encrypt_hint(worker_key)) from error
    text = (
        _decrypt_gcm(data, key, iv, worker_key)
        if algorithm == "aes-256-gcm"
        else _decrypt_cbc(data, key, iv, worker_key)
    )
    import json

    try:
        secrets = json.loads(text)
    except (ValueError, RecursionError):  # `from None`: its message and its context quote the text
        raise SecretError(
            f"{where} does not decrypt to JSON: the key on standard input is wrong, or other text was encrypted",
            hint=_key_hint(worker_key),
        ) from None
    if not isinstance(secrets, dict):
        raise SecretError(f"{where} is not a JSON object", hint=_encrypt_hint(worker_key))
    if secrets.get("type", secrets.get("workerType")) != type_:
        raise SecretError(
            f"{where} is not for this type of worker: expected the type {type_!r} in it", hint=_encrypt_hint(worker_key)
        )
    return secrets


def encrypt(secrets: Mapping[str, Any], key: bytes, *, worker_key: str, type_: str, algorithm: str) -> dict[str, str]:
    """The three fields to store. `type` is added to the object. Raises SecretError if it has another one."""
    if secrets.get("type", type_) != type_:
        raise SecretError(f"the secrets are for type {str(secrets['type'])[:80]!r}, not for {type_!r}")
    algorithm = _algorithm(algorithm, key, worker_key)
    import json

    text = json.dumps({"type": type_, **secrets}, separators=(",", ":")).encode()
    if algorithm == "aes-256-gcm":
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        iv = os.urandom(12)
        data = AESGCM(key).encrypt(iv, text, _associated(worker_key))
    else:
        from cryptography.hazmat.primitives import padding
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        iv = os.urandom(16)
        padder = padding.PKCS7(128).padder()
        encryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).encryptor()
        data = encryptor.update(padder.update(text) + padder.finalize()) + encryptor.finalize()
    import base64

    return {"encryptedAlg": algorithm, "encryptedIv": iv.hex(), "encryptedJson": base64.b64encode(data).decode()}


def key_bytes(algorithm: str) -> int:
    """The length of a key of one of ALGORITHMS."""
    return _KEY_BYTES[algorithm]


def _algorithm(name: str | None, key: bytes, worker_key: str) -> str:
    algorithm = (name or f"aes-{len(key) * 8}-cbc").lower()
    if algorithm not in _KEY_BYTES:
        raise SecretError(
            f"field encryptedAlg of {worker_key} is {algorithm[:80]!r}: expected one of {', '.join(ALGORITHMS)}",
            hint=_encrypt_hint(worker_key),
        )
    if len(key) != _KEY_BYTES[algorithm]:
        raise SecretError(
            f"encryptedAlg {algorithm} of {worker_key} needs a key of {_KEY_BYTES[algorithm] * 2} hexadecimal digits, but standard input has {len(key) * 2}",
            hint=_key_hint(worker_key),
        )
    return algorithm


def _unhex(text: str, size: int, worker_key: str) -> bytes:
    try:
        iv = bytes.fromhex(text.strip())
    except ValueError:
        iv = b""
    if len(iv) != size:
        raise SecretError(
            f"field encryptedIv of {worker_key} is not {size * 2} hexadecimal digits", hint=_encrypt_hint(worker_key)
        )
    return iv


def _decrypt_cbc(data: bytes, key: bytes, iv: bytes, worker_key: str) -> bytes:
    from cryptography.hazmat.primitives import padding
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    where = f"encryptedJson of {worker_key}"
    if not data or len(data) % 16:
        raise SecretError(
            f"{where} has {len(data)} bytes of ciphertext, not a whole number of AES blocks: it is truncated",
            hint=_encrypt_hint(worker_key),
        )
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    unpadder = padding.PKCS7(128).unpadder()
    try:
        return unpadder.update(decryptor.update(data) + decryptor.finalize()) + unpadder.finalize()
    except ValueError:
        raise SecretError(
            f"{where} does not decrypt: the key on standard input is wrong, or the text is damaged",
            hint=_key_hint(worker_key),
        ) from None


def _decrypt_gcm(data: bytes, key: bytes, iv: bytes, worker_key: str) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(iv, data, _associated(worker_key))
    except (InvalidTag, ValueError):
        raise SecretError(
            f"encryptedJson of {worker_key} does not decrypt: the key on standard input is wrong, the text is damaged, or it was "
            "encrypted for another worker",
            hint=_key_hint(worker_key),
        ) from None


def _key_hint(worker_key: str) -> str:
    return f"sandboxrun {keys.in_words(worker_key)} <KEYFILE"


def _encrypt_hint(worker_key: str) -> str:
    return f"sandboxrun encrypt {keys.in_words(worker_key)} --key-file KEYFILE --write <JSONFILE"


def _associated(worker_key: str) -> bytes:
    return b"sandboxrun " + worker_key.encode()
