"""Runs in the worker's process: what to do about a module that a worker does not find.

A script without a block imports Python's own modules, sandboxrun, what is installed beside sandboxrun, and the files of its
own folder; one with a block: packages.py.
"""

from __future__ import annotations

import os
import re
import shlex
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
_TRUST = "and their code is trusted as sandboxrun's own is"
_ONE_FILE = (
    "a script by URL has no other files but those that its block lists: run sandboxrun lock where the script is, or run its "
    "folder by url=FOLDER version=local"
)


def lines(error: ImportError, plan: Mapping[str, Any]) -> list[str]:
    """`plan`: as the supervisor gave it to this process."""
    by_url, has_block = bool(plan["show_source"]), plan["packages"] is not None
    if error.name is None:
        if "relative import" not in str(error):
            return []
        return [
            "a worker is the module __main__ and belongs to no package: import by the whole name",
            *[_ONE_FILE] * (by_url and not has_block),
        ]
    name = error.name.partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not name.isidentifier() or name in sys.modules:
        return []
    if name in sys.stdlib_module_names:
        return [f"{name} belongs to Python, and this installation of Python lacks it"]
    distribution = _DISTRIBUTIONS.get(name, name)
    if has_block:
        return _undeclared(name, distribution, plan)
    folder = (plan["script_path"] or [""])[0]
    places = f"neither in {folder} nor installed" if folder else "not installed"
    found = [f"{name} is {places}: a worker finds the packages that are installed beside sandboxrun, {_TRUST}"]
    if by_url:
        found.append(f"if {name} is a file beside the script: {_ONE_FILE}")
    if b"/// script" in plan["source"]:  # whose author means other packages than those of this environment
        return [
            *found,
            'the block "# /// script" counts for nothing: it lacks its end, a line "# ///", or lies in a string, or its first line '
            "is not exactly this",
        ]
    if b"\n# /// script" in b"\n" + plan["source"]:
        found.append(
            'the block "# /// script" has no end, a line "# ///", or lies in a string, so it counts for nothing'
        )
    found.append(
        f'to pin it with the script, begin that with the lines "# /// script", "# dependencies = [\'{distribution}\']" and '
        '"# ///", and run: sandboxrun lock FILE'
    )
    return [*found, f"hint: {install_hint([distribution])}"]


def _undeclared(name: str, distribution: str, plan: Mapping[str, Any]) -> list[str]:
    """Of a script with a block, which imports nothing that it does not name."""
    declared = {_canonical(requirement) for requirement in plan["declared"]}
    if _canonical(distribution) in declared:
        return [
            f"{distribution} is among the dependencies of the script, but it has no module {name}, or is not in the lock"
        ]
    alone = not plan["show_source"] and not plan["script_path"]
    if alone and os.path.exists(os.path.join(os.path.dirname(plan["name"]), f"{name}.py")):
        return [f"{name}.py lies beside the script, but url names the script alone: name its folder instead"]
    return [
        f"{name} is neither a file of the script nor among its dependencies, and a script with a block imports nothing else: add "
        f'"{distribution}" to dependencies, or {name}.py to its files, in the block "# /// script"',
        *([] if plan["show_source"] else [f"hint: sandboxrun lock {shlex.quote(plan['name'])}"]),
    ]


def _canonical(requirement: str) -> str:
    """The name of a requirement, PEP 503."""
    name = re.match(r"[A-Za-z0-9._-]*", requirement)
    return re.sub(r"[-_.]+", "-", name[0] if name else "").lower()
