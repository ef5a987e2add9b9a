"""The workers that the project brings: folders with worker.py, README.md and spec.json, data that is never imported.

A wheel installs them to `share/sandboxrun-plugins` of the environment, a path that outlives an upgrade of Python's minor
version; in a checkout they are in `plugins/`. Not below `share/sandboxrun`: after `pip install --user` that is the folder of
workers' data, and the folder of a worker that is called plugins would be there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping

import sandboxrun
from sandboxrun.digests import hex_digest
from sandboxrun.errors import ConfigError
from sandboxrun.records import record
from sandboxrun.sandbox.compile.code_paths import PLUGINS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE_MAX_BYTES = 1 << 20


@record
class Plugin:
    """One of them. `grants`: by field of the hash, to be changed to what the user needs. `example`: the data of a request."""

    name: str
    folder: str
    sha256: str  # of worker.py
    description: str
    grants: Mapping[str, str]
    example: Any

    @property
    def fields(self) -> dict[str, str]:
        """Of the hash. With the digest, another worker.py in the same folder is refused, until somebody has looked at it."""
        return {"url": self.folder, "version": "local", "sha256": self.sha256, **self.grants}


def find() -> list[Plugin]:
    """All of them, by name; none if the installation left data out. Raises ConfigError for one that is damaged."""
    folder = next(filter(os.path.isdir, _folders()), None)
    if folder is None:
        return []
    names = sorted(name for name in os.listdir(folder) if os.path.isfile(os.path.join(folder, name, "worker.py")))
    return [_read(name, os.path.join(folder, name)) for name in names]


def _folders() -> Iterator[str]:
    """Where they may be, the most certain first: a checkout; what the installer recorded; beside the package."""
    above = os.path.dirname(os.path.dirname(os.path.abspath(sandboxrun.__file__)))
    if os.path.isfile(os.path.join(above, "pyproject.toml")):
        yield os.path.join(above, "plugins")
    from importlib import metadata

    try:
        files = metadata.files("sandboxrun") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "worker.py" and file.parts[-4:-2] == PLUGINS:
            yield os.path.dirname(os.path.dirname(os.path.realpath(file.locate())))
    yield os.path.join(above, *PLUGINS)  # pip install --target: what it recorded is relative to another folder


def _read(name: str, folder: str) -> Plugin:
    try:
        worker, readme, spec = (_bytes(os.path.join(folder, file)) for file in ("worker.py", "README.md", "spec.json"))
        values = json.loads(spec)
        return Plugin(
            name, folder, hex_digest(worker), _description(readme.decode()), values["grants"], _example(values)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"the plugin in {folder} is damaged: {error}") from error


def _bytes(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(FILE_MAX_BYTES)


def _description(readme: str) -> str:
    """The first line that is neither empty nor a heading."""
    return next((line for line in readme.splitlines() if line.strip() and not line.startswith("#")), "")


def _example(spec: Mapping[str, Any]) -> Any:
    return next(iter(spec.get("request", {}).get("examples", ())), {})
