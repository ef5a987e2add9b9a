"""Where things are kept for the user, and the policy files that hold for him. The only importer of platformdirs."""

from __future__ import annotations

import os

import platformdirs

from sandboxrun.ceiling import Ceiling
from sandboxrun.config import WorkerConfig
from sandboxrun.errors import ConfigError
from sandboxrun.policyfile import ceiling_for
from sandboxrun.records import record


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
    def filters(self) -> str:
        """Compiled filters."""
        return os.path.join(self.cache, "filters")

    @property
    def runs(self) -> str:
        """What each worker was given last."""
        return os.path.join(self.state, "runs")

    @property
    def approved(self) -> str:
        """What each worker's hash was allowed to ask."""
        return os.path.join(self.state, "approved")

    @classmethod
    def of_user(cls) -> Folders:
        dirs = platformdirs.PlatformDirs("sandboxrun", multipath=True)
        try:
            cache, state, data = dirs.user_cache_dir, dirs.user_state_dir, dirs.user_data_dir
            config, system = dirs.user_config_dir, dirs.site_config_dir.split(os.pathsep)
        except RuntimeError:  # a user without an entry in the password database
            cache = state = data = config = ""
            system = []
        if not all(map(os.path.isabs, (cache, state, data, config))):
            raise ConfigError(
                "there is no home folder for the cache: set HOME, or XDG_CACHE_HOME, XDG_STATE_HOME, XDG_DATA_HOME and "
                "XDG_CONFIG_HOME, to absolute paths"
            )
        # Whatever XDG_CONFIG_DIRS says, the usual place is looked at, for an administrator writes there.
        folders = dict.fromkeys((*system, "/etc/xdg/sandboxrun", config))
        return cls(cache, state, data, tuple(os.path.join(folder, "policy.toml") for folder in folders))

    def ceiling(self, worker: WorkerConfig, policy: str | None) -> Ceiling:
        """`policy`: a file instead of the user's. Raises ConfigError."""
        *system, user = self.policies
        data = os.path.join(self.data, worker.type, worker.id)
        return ceiling_for(
            worker, system=system, user=os.path.abspath(policy or user), required=policy is not None, data=data
        )
