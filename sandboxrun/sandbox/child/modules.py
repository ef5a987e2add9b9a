"""Runs in the worker's process: what to do about a module that a worker does not find.

A worker imports Python's own modules, sandboxrun, what is installed beside sandboxrun, and the files of its own folder.
"""

from __future__ import annotations

import re
import sys

from sandboxrun.installation import install_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# Packages that are imported by another name than they are installed by.
_DISTRIBUTIONS = {
    "attr": "attrs", "bs4": "beautifulsoup4", "Crypto": "pycryptodome", "cv2": "opencv-python", "dateutil": "python-dateutil",
    "discord": "discord.py", "docx": "python-docx", "dotenv": "python-dotenv", "fitz": "PyMuPDF", "git": "GitPython",
    "jose": "python-jose", "jwt": "PyJWT", "magic": "python-magic", "MySQLdb": "mysqlclient", "nacl": "PyNaCl",
    "OpenSSL": "pyOpenSSL", "PIL": "pillow", "pptx": "python-pptx", "psycopg2": "psycopg2-binary", "serial": "pyserial",
    "skimage": "scikit-image", "sklearn": "scikit-learn", "slugify": "python-slugify", "socks": "PySocks",
    "telegram": "python-telegram-bot", "websocket": "websocket-client", "yaml": "PyYAML", "zmq": "pyzmq",
}  # fmt: skip
_REQUIREMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[\w ,.-]*\])?[^/@]*"  # PEP 508, without @ URL
_TRUST = "and their code is trusted as sandboxrun's own is"
_ONE_FILE = (
    "a script by URL is one file, and nothing beside it is fetched: put the code into the script, or run its folder by "
    "url=FOLDER version=local"
)


def lines(error: ImportError, plan: Mapping[str, Any]) -> list[str]:
    """`plan`: as the supervisor gave it to this process."""
    by_url = bool(plan["show_source"])
    if error.name is None:
        if "relative import" not in str(error):
            return []
        return [
            "a worker is the module __main__ and belongs to no package: import by the whole name",
            *[_ONE_FILE] * by_url,
        ]
    name = error.name.partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not name.isidentifier() or name in sys.modules:
        return []
    if name in sys.stdlib_module_names:
        return [f"{name} belongs to Python, and this installation of Python lacks it"]
    listed = dependencies(plan["source"].decode("utf-8-sig", "replace"))
    folder = (plan["script_path"] or [""])[0]
    places = f"neither in {folder} nor installed" if folder else "not installed"
    found = [f"{name} is {places}: a worker finds the packages that are installed beside sandboxrun, {_TRUST}"]
    if listed:
        found.append('the list of dependencies in "# /// script" is not read')
    elif by_url:
        found.append(f"if {name} is a file beside the script: {_ONE_FILE}")
    return [*found, f"hint: {install_hint(listed or [_DISTRIBUTIONS.get(name, name)])}"]


def dependencies(source: str) -> list[str]:
    """Of inline script metadata (PEP 723); none if there is no such block, or it cannot be read."""
    block: list[str] = []
    inside = False
    for line in source.splitlines():
        if line.rstrip() == "# /// script":
            block, inside = [], True
        elif inside and line.rstrip() == "# ///":
            break
        elif inside and line.startswith("#"):
            block.append(line[2:])
        else:
            inside = False
    else:
        return []
    import tomllib

    try:
        listed = tomllib.loads("\n".join(block)).get("dependencies", [])
    except tomllib.TOMLDecodeError:
        return []
    # By name alone: others could be an option of pip, a URL, or a folder that a worker has written, whose code pip runs.
    return [
        entry
        for entry in (listed if isinstance(listed, list) else [])
        if isinstance(entry, str) and entry.isprintable() and re.fullmatch(_REQUIREMENT, entry, re.ASCII)
    ]
