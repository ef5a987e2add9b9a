"""What a script says about itself: its block of inline script metadata (PEP 723). Pure.

    # /// script
    # requires-python = ">=3.11"
    # dependencies = ["requests"]
    # [tool.sandboxrun]
    # files = { "helpers.py" = "sha256:…" }
    # lock = "sha256:…"
    # ///

`files` are the script's other files, relative to it; `lock` is the file of hashed packages beside it. The digest of the
script therefore covers all that runs. `[tool.uv]` and other tables are ignored: a script chooses no package index.
"""

from __future__ import annotations

import re

from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILES_MAX = 200
FILE_MAX_BYTES = 1 << 20
FILES_MAX_BYTES = 8 << 20
LOCK_NAME = "requirements.lock"
OPENING = b"# /// script"  # without it, a script has no block
BLOCK_FORMAT = 3  # of a Block that is kept: another number where the fields or their rules have changed


@record
class Block:
    """The metadata of a script. Lines count from 1."""

    first_line: int  # of the opening
    last_line: int  # of the closing
    requires_python: str = ""
    dependencies: tuple[str, ...] = ()
    files: tuple[tuple[str, str], ...] = ()  # (relative path, sha256 in hexadecimal), sorted
    lock: str | None = None  # sha256 in hexadecimal
    exclude_newer: str = ""


def plain_block(value: dict[str, Any] | None) -> Block | None:
    """From what JSON made of the fields of a Block."""
    if value is None:
        return None
    files = tuple((path, digest) for path, digest in value["files"])
    return Block(**{**value, "dependencies": tuple(value["dependencies"]), "files": files})


def lock_names(script: str) -> tuple[str, str, str]:
    """The names that the lock of a script may have, in the order in which they are looked for: hashed requirements, and
    PEP 751 for this script or for its folder."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", script.removesuffix(".py")).strip("-")
    return LOCK_NAME, f"pylock.{stem or 'worker'}.toml", "pylock.toml"
