"""The command `sandboxrun lock`, and the folder of an author who uses it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from runner import Done, Runner
from small_index import Index

from sandboxrun.config.block import read_block
from sandboxrun.config.script import Block

NO_REDIS = "redis://127.0.0.1:1"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def index_variables(index: Index) -> dict[str, str]:
    return {"PIP_CONFIG_FILE": "/dev/null", "PIP_INDEX_URL": index.url, "UV_HTTP_RETRIES": "0"}


class Lock:
    """The command `sandboxrun lock`."""

    def __init__(self, home: Path, index: Index) -> None:
        home.mkdir(exist_ok=True)
        self.run = Runner(NO_REDIS, home, policy=None)
        self.run.env |= index_variables(index)

    def __call__(self, *args: str) -> Done:
        return self.run("lock", *args)


def git(folder: Path, *args: str) -> None:
    subprocess.run(["git", "-c", "init.defaultBranch=main", *args], cwd=folder, check=True, capture_output=True)


def block_of(folder: Path) -> Block:
    block = read_block((folder / "worker.py").read_bytes(), "worker.py")
    assert block is not None
    return block


def listed(folder: Path) -> list[str]:
    return [path for path, _ in block_of(folder).files]


def depend(folder: Path, *dependencies: str) -> None:
    """Set the dependencies in the block, as an author does."""
    path = folder / "worker.py"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# dependencies")]
    if "# /// script" not in lines:
        lines = ["# /// script", "# ///", *lines]
    lines.insert(lines.index("# /// script") + 1, f"# dependencies = {list(dependencies)}".replace("'", '"'))
    path.write_text("\n".join(lines) + "\n")
