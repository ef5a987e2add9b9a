"""The values that describe a run: the command line, the plan, its record, and the agreement of the operator."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from sandboxrun.config.permissions import Permissions
from sandboxrun.config.worker import Asked, WorkerConfig
from sandboxrun.errors import ConfigError
from sandboxrun.fetch.resolve import ImportList
from sandboxrun.files import write_whole
from sandboxrun.host.folders import Folders
from sandboxrun.plainjson import dumps
from sandboxrun.records import asdict, field, record, replace
from sandboxrun.redis.lease import start_time, this_host
from sandboxrun.sandbox.compile.policy import Interpreter, SandboxPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from sandboxrun.config.debugger import Inspect
    from sandboxrun.config.limits import Limits


@record
class RunOptions:
    """The command line of one run, parsed."""

    type: str
    id: str
    redis_url: str
    allowed: ImportList | None = None  # None: the policy's hosts, else the default ones
    extra: Permissions = field(default_factory=Permissions)
    limits: Mapping[str, int] = field(default_factory=dict)
    degraded: tuple[str, ...] = ()  # names of kernel features the operator does without
    reload: bool = False
    cached_only: bool = False
    policy: str | None = None  # a policy file instead of the user's
    yes: bool = False  # more permissions than last time are approved
    audit: tuple[str, ...] = ()  # files, or "journal"
    inspect: Inspect | None = None
    output_log: bool = True  # what the worker prints is kept, for `sandboxrun logs`
    wait: bool = False  # for Redis and for the hash, instead of ending
    standby: int | None = None  # a descriptor: start when a byte can be read from it, or not at all when it is closed
    clock: float | None = None  # the time that the worker has, for tests: seconds since 1970
    seed: int | None = None  # of the worker's random numbers, for tests
    interactive: bool = True  # the operator may be asked at the terminal


@record
class VerifiedScript:
    """The script, verified."""

    source: bytes = field(repr=False)
    sha256: str
    origin: str  # URL or path; shown in tracebacks
    folder: str | None  # first on its sys.path: a local worker's, or that of a fetched script's files
    is_file: bool  # whether `origin` is a path
    path: str  # __file__; empty: the origin
    files: tuple[tuple[str, str], ...] = ()  # the other files: path and sha256


@record
class Packages:
    """The packages that a script with a block imports, beside its files and the SDK."""

    declared: tuple[str, ...]  # its dependencies
    lock: str | None  # sha256; None without dependencies
    folder: str | None  # the environment that they are installed in
    installed: tuple[tuple[str, str], ...]  # name and version


@record
class RunPlan:
    """All that is decided of a run before its child is confined; no secret, and nothing that differs from run to run."""

    worker: WorkerConfig  # with what the command line adds, and within the ceiling
    script: VerifiedScript
    environment: Interpreter
    policy: SandboxPolicy  # but for the run's own scratch folder
    env: tuple[str, ...]  # the operator's variables that the worker sees, by name
    degraded: tuple[str, ...]  # what of the boundary does not hold
    stands_on: tuple[str, ...]  # the hashes without which the worker could not be started again
    packages: Packages | None = None  # None: no block, so it imports what is installed beside sandboxrun

    @property
    def limits(self) -> Limits:
        return self.worker.limits

    @property
    def inspect(self) -> Inspect | None:
        return self.worker.inspect

    @property
    def given(self) -> dict[str, object]:
        """The permissions and limits, for records."""
        permissions = self.worker.permissions
        lists = (("allow", permissions.allow), ("deny", permissions.deny))
        return {
            **{
                verdict: {kind: [str(target) for target in targets] for kind, targets in found.items() if targets}
                for verdict, found in lists
            },
            "limits": asdict(self.limits),
            **({"inspect": str(self.inspect)} if self.inspect is not None else {}),
        }

    def policy_with(self, scratch: str) -> SandboxPolicy:
        """For a run that has this folder of its own."""
        real = os.path.realpath(scratch)
        return replace(self.policy, read=(*self.policy.read, real), write=(*self.policy.write, real))


@record
class Agreement:
    """Whether the operator agrees to what the hash asks. `how`: "first" if nothing was recorded, "same" if it asks for
    nothing more, "--yes", "terminal"; empty if nobody has approved what has `grown`."""

    how: str
    grown: tuple[str, ...]
    before: Asked | None = None  # the last approval, unless this one was recorded


def write_record(folders: Folders, plan: RunPlan, brought: dict[str, object], pid: int) -> None:
    """What this worker is given now, for the operator to look up later. `brought`: its files and packages. `pid`: the worker's.

    Raises ConfigError.
    """
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "worker": plan.worker.key,
        "origin": plan.script.origin,
        "sha256": plan.script.sha256,
        **plan.given,
        "degraded": plan.degraded,
        **brought,
        # The worker's process, which cannot outlive its supervisor: `sandboxrun health` looks whether it lives.
        "supervisor": {"pid": pid, "started": start_time(pid), "host": this_host()},
    }
    if brought:
        record["uses"] = _uses(folders, plan)
    path = os.path.join(folders.runs, f"{plan.worker.type}:{plan.worker.id}.json")
    try:
        os.makedirs(folders.runs, mode=0o700, exist_ok=True)
        write_whole(path, dumps(record).encode(), sync=False)
    except OSError as error:
        raise ConfigError(f"the run cannot be recorded in {folders.runs}: {error.strerror}") from error


def _uses(folders: Folders, plan: RunPlan) -> list[str]:
    """What of the cache the worker may read: `sandboxrun cache` keeps what a running worker uses."""
    cache = os.path.realpath(folders.cache)
    places = (os.path.join(cache, "trees"), os.path.join(cache, "env"))
    return [os.path.relpath(path, cache) for path in plan.policy.read if os.path.dirname(path) in places]


def environment(plan: RunPlan, login: Mapping[str, str], scratch: str) -> dict[str, str]:
    """All variables that the worker has but those about its data. `login`: to Redis."""
    return {name: os.environ[name] for name in plan.env if name in os.environ} | {
        **login,
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": scratch,
    }
