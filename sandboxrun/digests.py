"""SHA-256 and a keyed digest from Python's own modules: hashlib loads OpenSSL for them, which takes two milliseconds."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import blake2b, sha256
else:
    try:
        from _blake2 import blake2b

        if sys.version_info >= (3, 12):  # asked, because a module that is not there is looked for in every folder
            from _sha2 import sha256
        else:
            from _sha256 import sha256
    except ImportError:  # a Python that was built without them
        from hashlib import blake2b, sha256

__all__ = ["hex_digest", "sealed", "unsealed"]

SEAL_BYTES = 32


def hex_digest(data: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return str(sha256(data).hexdigest())


def sealed(data: bytes, key: bytes, name: str) -> bytes:
    """`data` behind a digest that only who has the `key` can make, and that holds for this `name` alone."""
    return _seal(data, key, name) + data


def unsealed(data: bytes, key: bytes, name: str) -> bytes | None:
    """What was sealed; None where it is not what this key has sealed under this name."""
    seal, found = data[:SEAL_BYTES], data[SEAL_BYTES:]
    if len(seal) < SEAL_BYTES or not _equal(seal, _seal(found, key, name)):
        return None
    return found


def _seal(data: bytes, key: bytes, name: str) -> bytes:
    digest = blake2b(key=key[:64], digest_size=SEAL_BYTES)
    digest.update(b"%d %s " % (len(name.encode()), name.encode()))
    digest.update(data)
    return bytes(digest.digest())


def _equal(one: bytes, other: bytes) -> bool:
    """In the same time wherever they differ."""
    difference = len(one) ^ len(other)
    for a, b in zip(one, other):  # noqa: B905 - their lengths count above
        difference |= a ^ b
    return difference == 0
