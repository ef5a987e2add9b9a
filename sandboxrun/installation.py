"""How sandboxrun was installed: the command that adds packages there. It imports no other module of this project."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence


def install_hint(packages: Sequence[str]) -> str:
    """The command that installs packages beside sandboxrun."""
    words = shlex.join(packages)
    python = shlex.quote(sys.executable)
    if os.path.exists(os.path.join(sys.prefix, "pipx_metadata.json")):
        return f"pipx inject sandboxrun {words}"
    if os.path.exists(os.path.join(sys.prefix, "uv-receipt.toml")):
        return f"uv tool install sandboxrun {' '.join('--with ' + shlex.quote(package) for package in packages)}"
    if not any(os.path.isdir(os.path.join(folder, "pip")) for folder in sys.path):
        return f"uv pip install --python {python} {words}"
    return f"{python} -m pip install {words}"
