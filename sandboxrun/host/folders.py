"""Where things are kept for the user, and the policy files that hold for him: the XDG Base Directory Specification.

By hand, for it is asked at every start: platformdirs imports pathlib and typing, four milliseconds, for what is four paths
on Linux.
"""

from __future__ import annotations

import os

from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import ConfigError
from sandboxrun.files import Kept
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.policy.file import ceiling_for
from sandboxrun.records import record

_XDG = {
    "XDG_CACHE_HOME": ".cache",
    "XDG_STATE_HOME": ".local/state",
    "XDG_DATA_HOME": ".local/share",
    "XDG_CONFIG_HOME": ".config",
}


@record
class Folders:
    """The user's folders: `cache` may be deleted at any time, `state` holds decisions and records, `data` what workers keep,
    each in TYPE/ID; `policies` are files, of which the last is the user's and the others the system's."""

    cache: str
    state: str
    data: str
    policies: tuple[str, ...]

    @property
    def scratch(self) -> str:
        """The runs' own folders."""
        return os.path.join(self.cache, "scratch")

    @property
    def filters(self) -> Kept:
        """Compiled filters."""
        return Kept(os.path.join(self.cache, "filters"), self.key)

    @property
    def key(self) -> str:
        """What is compiled is sealed with it: it lies where no cache is cleaned, and nothing else may write."""
        return os.path.join(self.state, "key")

    @property
    def runs(self) -> str:
        """What each worker was given last."""
        return os.path.join(self.state, "runs")

    @property
    def logs(self) -> str:
        """What workers printed last."""
        return os.path.join(self.state, "logs")

    def log(self, type_: str, id_: str) -> str:
        return os.path.join(self.logs, f"{type_}:{id_}.log")

    @property
    def approved(self) -> str:
        """What each worker's hash was allowed to ask."""
        return os.path.join(self.state, "approved")

    @classmethod
    def of_user(cls) -> Folders:
        cache, state, data, config = (
            os.path.join(os.environ.get(variable) or os.path.expanduser(f"~/{usual}"), "sandboxrun")
            for variable, usual in _XDG.items()
        )
        if not all(map(os.path.isabs, (cache, state, data, config))):
            raise ConfigError(
                "there is no home folder for the cache: set HOME, or XDG_CACHE_HOME, XDG_STATE_HOME, XDG_DATA_HOME and "
                "XDG_CONFIG_HOME, to absolute paths"
            )
        system = [
            os.path.join(folder, "sandboxrun")
            for folder in os.environ.get("XDG_CONFIG_DIRS", "").split(os.pathsep)
            if os.path.isabs(folder)
        ]
        # Whatever XDG_CONFIG_DIRS says, the usual place is looked at, for an administrator writes there.
        folders = dict.fromkeys((*system, "/etc/xdg/sandboxrun", config))
        return cls(cache, state, data, tuple(os.path.join(folder, "policy.toml") for folder in folders))

    def data_of(self, worker: WorkerConfig) -> str:
        """The worker's own data folder, `~data` in its hash."""
        return os.path.join(self.data, worker.type, worker.id)

    def ceiling(self, worker: WorkerConfig, policy: str | None) -> Ceiling:
        """`policy`: a file instead of the user's. Raises ConfigError."""
        *system, user = self.policies
        return ceiling_for(
            worker,
            system=system,
            user=os.path.abspath(policy or user),
            required=policy is not None,
            data=self.data_of(worker),
        )
