"""The user's folders and the policy files that apply, by the XDG Base Directory Specification, as platformdirs reads it.

It is asked if the environment says anything beyond HOME. Without that its answers are the specification's defaults, and a
start would take a seventh longer for them; a test compares both.
"""

from __future__ import annotations

import os

from sandboxrun.errors import ConfigError
from sandboxrun.records import record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.config.worker import WorkerConfig
    from sandboxrun.files import Kept
    from sandboxrun.policy.ceiling import Ceiling

_XDG = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")

_DEFAULTS = (".cache", ".local/state", ".local/share", ".config")  # below HOME, in the order of _XDG


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
        from sandboxrun.files import Kept

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
    def agents(self) -> str:
        """The sockets of agents (statuses.py)."""
        return os.path.join(self.state, "agent")

    @property
    def approved(self) -> str:
        """What each worker's hash was allowed to ask."""
        return os.path.join(self.state, "approved")

    @classmethod
    def of_user(cls) -> Folders:
        _check_environment()
        home = os.environ.get("HOME", "")
        if os.path.isabs(home) and not any(
            os.environ.get(variable, "").strip() for variable in (*_XDG, "XDG_CONFIG_DIRS")
        ):
            cache, state, data, config = (f"{home.rstrip('/')}/{folder}/sandboxrun" for folder in _DEFAULTS)
            return cls(cache, state, data, ("/etc/xdg/sandboxrun/policy.toml", f"{config}/policy.toml"))
        from platformdirs.unix import Unix

        user = Unix("sandboxrun", multipath=True)
        own: tuple[str, ...] = ()
        try:
            own = (user.user_cache_dir, user.user_state_dir, user.user_data_dir, user.user_config_dir)
        except RuntimeError:  # an older platformdirs returns a relative path instead
            pass
        if not own or not all(map(os.path.isabs, own)):
            raise ConfigError("there is no home folder: HOME is not set, and this user has none", hint=_home_hint())
        cache, state, data, config = own
        # Whatever XDG_CONFIG_DIRS says, /etc/xdg is read, because administrators write there.
        system = (*filter(os.path.isabs, user.site_config_dir.split(os.pathsep)), "/etc/xdg/sandboxrun")
        folders = dict.fromkeys((*system, config))
        return cls(cache, state, data, tuple(os.path.join(folder, "policy.toml") for folder in folders))

    def data_of(self, worker: WorkerConfig) -> str:
        """The worker's own data folder, `~data` in its hash."""
        return os.path.join(self.data, worker.type, worker.id)

    def ceiling(self, worker: WorkerConfig, policy: str | None) -> Ceiling:
        """`policy`: a file instead of the user's. Raises ConfigError."""
        from sandboxrun.policy.file import ceiling_for  # `sandboxrun health` needs none

        *system, user = self.policies
        return ceiling_for(
            worker,
            system=system,
            user=os.path.abspath(policy or user),
            required=policy is not None,
            data=self.data_of(worker),
        )


def _check_environment() -> None:
    """Raise ConfigError for a relative path. The XDG specification calls it invalid, and versions of platformdirs differ: they
    take it, or the usual folder instead. Either way a policy file that the operator means could be another, or none."""
    usual = False
    for variable in _XDG:
        path = os.environ.get(variable, "")
        usual |= not path.strip()
        if path.strip() and not os.path.isabs(path):
            raise ConfigError(f"{variable} is {path[:200]!r}, and must be an absolute path", hint=f"unset {variable}")
    home = os.environ.get("HOME")
    if usual and home is not None and not os.path.isabs(home):
        raise ConfigError(f"HOME is {home[:200]!r}, and must be an absolute path", hint=_home_hint())


def _home_hint() -> str:
    return "export HOME=/FOLDER"
