"""A RunPlan as values that marshal and JSON know, and back. Pure.

A script is UTF-8, or it was refused; a path that is not has lone surrogates (PEP 383), which both bring back.
"""

from __future__ import annotations

from sandboxrun.config.fields import Loop
from sandboxrun.config.limits import LIMITS, Limits
from sandboxrun.config.permissions import KINDS, VERDICTS, Permissions
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.errors import ConfigError
from sandboxrun.host.runplan import Packages, RunPlan, VerifiedScript
from sandboxrun.records import asdict
from sandboxrun.sandbox.compile.policy import Interpreter, SandboxPolicy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.config.debugger import Inspect

    Json = dict[str, Any]

FORMAT = 3
_WORKER = ("key", "type", "id", "url", "version", "sha256", "has_secrets")
_ENVIRONMENT = ("prefix", "programs", "library", "site_packages", "package", "searched", "mixed")
_POLICY = ("read", "write", "devices", "execute")


def to_plain(plan: RunPlan) -> Json:
    """Dicts with texts as keys, lists, texts, whole numbers, booleans and None."""
    worker, script, policy = plan.worker, plan.script, plan.policy
    return {
        "format": FORMAT,
        "worker": {
            **{name: getattr(worker, name) for name in _WORKER},
            "loop": _listed({name: getattr(worker.loop, name) for name in Loop.__slots__}),
            "permissions": _permissions(worker.permissions),
        },
        "script": {
            **asdict(script),
            "source": script.source.decode("utf-8"),
            "files": dict(script.files),
        },
        "packages": None
        if plan.packages is None
        else {**_listed(asdict(plan.packages)), "installed": dict(plan.packages.installed)},
        "environment": _listed(asdict(plan.environment)),
        "policy": {
            "net": _permissions(policy.net),
            **_listed({name: getattr(policy, name) for name in _POLICY}),
            "unix_socket": list(policy.unix_socket) if policy.unix_socket is not None else None,
        },
        "env": list(plan.env),
        "limits": asdict(plan.limits),
        "inspect": _inspect(plan.inspect),
        "degraded": list(plan.degraded),
        "stands_on": list(plan.stands_on),
    }


def from_plain(value: Any) -> RunPlan:
    """Raises ConfigError for what `to_plain` cannot have made."""
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {str(value['format'])[:20]}, and {FORMAT} is known")
        _check(value, _SHAPE, "")
        return _from_plain(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"this is no plan of sandboxrun: {str(error)[:200]}") from error


def _from_plain(value: Json) -> RunPlan:
    worker, policy = value["worker"], value["policy"]
    limits = Limits(**value["limits"])
    return RunPlan(
        worker=WorkerConfig(
            **{name: worker[name] for name in _WORKER},
            permissions=_read_permissions(worker["permissions"]),
            limits=limits,
            loop=Loop(**_tuples(worker["loop"])),
            inspect=_read_inspect(value["inspect"]),
        ),
        script=VerifiedScript(
            **{
                **value["script"],
                "source": value["script"]["source"].encode("utf-8"),
                "files": tuple(value["script"]["files"].items()),
            },
        ),
        environment=Interpreter(**_tuples(value["environment"])),
        policy=SandboxPolicy(
            net=_read_permissions(policy["net"]),
            **_tuples({name: policy[name] for name in (*_POLICY, "unix_socket")}),
            limits=limits,
        ),
        env=tuple(value["env"]),
        degraded=tuple(value["degraded"]),
        stands_on=tuple(value["stands_on"]),
        packages=None
        if value["packages"] is None
        else Packages(
            **_tuples({**value["packages"], "installed": [*value["packages"]["installed"].items()]}),
        ),
    )


def _check(value: Any, shape: Any, at: str) -> None:
    """Raise ValueError for what does not have this shape: a type; a list of one shape; a dict with a shape for each name, or
    with one for all (`str`); a pair of None and a shape, for what there may be."""
    good, parts = type(value) is shape, []
    if isinstance(shape, tuple):
        good, parts = True, [] if value is None else [(value, shape[1], at)]
    elif isinstance(shape, list):
        good = type(value) is list
        parts = [(part, shape[0], at) for part in value] if good else []
    elif isinstance(shape, dict):
        good = type(value) is dict and (str in shape or value.keys() == shape.keys())
        parts = [(part, shape.get(str) or shape[name], f"{at}.{name}") for name, part in value.items()] if good else []
    if not good:
        raise ValueError(f"{at.removeprefix('.')[:100] or 'all'} is not as in a plan")
    for part in parts:
        _check(*part)


_LISTS = {verdict: {str: [str]} for verdict in VERDICTS}
_SHAPE = {
    "format": int,
    "worker": {
        **dict.fromkeys(_WORKER, str),
        "sha256": (None, str),
        "has_secrets": bool,
        "loop": {
            **dict.fromkeys(Loop.__slots__, int),
            **dict.fromkeys(("consumer_group", "consumer_id", "request_stream", "response_stream"), str),
            "services": [str],
        },
        "permissions": _LISTS,
    },
    "script": {
        "source": str,
        "sha256": str,
        "origin": str,
        "folder": (None, str),
        "is_file": bool,
        "path": str,
        "files": {str: str},
    },
    "packages": (
        None,
        {"declared": [str], "lock": (None, str), "folder": (None, str), "installed": {str: str}},
    ),
    "environment": {name: str if name in ("prefix", "package") else [str] for name in _ENVIRONMENT},
    "policy": {"net": _LISTS, **{name: [str] for name in _POLICY}, "unix_socket": (None, [str])},
    "env": [str],
    "limits": {name: (None, int) if name == "output" else int for name in LIMITS},
    "inspect": (None, {"address": str, "wait": bool, "where": str}),
    "degraded": [str],
    "stands_on": [str],
}


def differences(before: Json, after: Json, at: str = "") -> dict[str, tuple[Any, Any]]:
    """What two plain plans do not have in common: both values by the dotted name; None where one has none."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= differences(old, new, f"{at}{name}.")
        elif old != new:
            found[at + name] = old, new
    return found


def _listed(values: Json) -> Json:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _tuples(values: Json) -> Json:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _permissions(permissions: Permissions) -> Json:
    both = ((verdict, getattr(permissions, verdict)) for verdict in VERDICTS)
    return {
        str(verdict): {str(kind): [str(target) for target in targets] for kind, targets in lists.items()}
        for verdict, lists in both
    }


def _read_permissions(value: Json) -> Permissions:
    return Permissions(
        *(
            {kind: tuple(map(KINDS[kind].parse, texts)) for kind, texts in value[verdict].items()}
            for verdict in VERDICTS
        )
    )


def _inspect(inspect: Inspect | None) -> Json | None:
    if inspect is None:
        return None
    return {"address": str(inspect.address), "wait": inspect.wait, "where": inspect.where}


def _read_inspect(value: Json | None) -> Inspect | None:
    if value is None:
        return None
    from sandboxrun.config.debugger import Inspect
    from sandboxrun.config.permissions import ListenTarget

    return Inspect(ListenTarget.parse(value["address"]), value["wait"], value["where"])
