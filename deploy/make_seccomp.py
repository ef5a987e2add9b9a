"""Make seccomp.json from a container engine's default profile: the same, and pidfd_getfd.

python deploy/make_seccomp.py tests/data/seccomp/docker-26.1.5.json

tests/data/seccomp/README.md says how such a profile is recorded. It has no conditions on capabilities, because containerd
and CRI-O read a profile as the OCI runtime specification has it, and would ignore them: everything that Docker's own source
file allows with CAP_SYS_ADMIN would then be allowed without.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = (ROOT / "deploy/seccomp.json", ROOT / "sandboxrun/sandbox/selftest/seccomp.json")  # the second is in the wheel
ADDED = "pidfd_getfd"


def with_added(profile: dict[str, Any]) -> dict[str, Any]:
    return profile | {"syscalls": [*profile["syscalls"], {"names": [ADDED], "action": "SCMP_ACT_ALLOW"}]}


def text(profile: dict[str, Any]) -> str:
    """JSON with a line for each name, so that a change of it is a line of the diff."""
    return json.dumps(profile, indent=1) + "\n"


def main() -> None:
    (source,) = sys.argv[1:]
    made = text(with_added(json.loads(Path(source).read_text())))
    for file in FILES:
        file.write_text(made)


if __name__ == "__main__":
    main()
