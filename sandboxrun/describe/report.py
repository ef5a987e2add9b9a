"""What `show` prints about a worker, as values of JSON: stable names, secrets masked. Pure, except for the record of the last
run."""

from __future__ import annotations

import json
import os

from sandboxrun.config import keys
from sandboxrun.config.limits import LIMITS, show_size
from sandboxrun.config.permissions import Kind, Verdict
from sandboxrun.config.worker import WorkerConfig
from sandboxrun.describe import contents
from sandboxrun.describe.fields import is_known, is_secret, mask, masked_hint, shown
from sandboxrun.describe.words import always, lines
from sandboxrun.errors import SandboxrunError
from sandboxrun.fetch.resolve import LocalSource, kind_of
from sandboxrun.host.plan import Preparation
from sandboxrun.policy.amend import entry_text
from sandboxrun.policy.ceiling import Ceiling
from sandboxrun.redis.hashes import Hashes
from sandboxrun.redis.lease import is_alive, this_host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Json = dict[str, Any]

RECORD_MAX_BYTES = 16 * 1024 * 1024


def report(hashes: Hashes, found: Preparation, *, redis: str, last: Json | None) -> Json:
    """`redis`: where Redis is, without a password. `last`: of `last_run`."""
    type_, id_ = keys.split_worker_key(hashes.own.key)
    return {
        "worker": f"{type_}:{id_}",
        "key": hashes.own.key,
        "hashes": [stored.key for stored in (hashes.shared, hashes.own) if stored.kind != "none"],
        "redis": redis,
        "running": running(hashes),
        "code": code(found),
        **permissions(found.config, redis, hashes),
        "limits": limits(found),
        "policy": policy(found),
        "agreed": agreed(found),
        "faults": [fault(error) for error in found.faults],
        "last_run": last
        and {**last, "same_code": bool(found.artifact and found.artifact.sha256 == last.get("sha256"))},
        "fields": fields(hashes),
    }


def agreed(found: Preparation) -> Json:
    """Whether anything was approved before, and what the next run would ask."""
    agreement = found.agreement
    if agreement is None:
        return {"recorded": False, "grown": []}
    return {"recorded": agreement.how != "first", "grown": list(agreement.grown)}


def fields(hashes: Hashes) -> Json:
    """By name: the value as it may be shown, the hash that has it, and whether only the script reads it."""
    return {
        name: {
            "value": shown(name, stored.fields.get(raw), stored.long.get(raw, 0)),
            "from": stored.key,
            "secret": is_secret(name),
            "own": not is_known(name),
        }
        for name, stored, raw in hashes.set_fields()
    }


def running(hashes: Hashes) -> Json | None:
    """The process that holds `pid`; None if there is none."""
    found = hashes.holder
    if found["pid"] is None:
        return None
    seen = found["pidSeen"] or ""
    here = found["pidHost"] in (None, this_host())
    return {
        "alive": is_alive(found, hashes.own.key, hashes.now),
        "pid": found["pid"][:32],
        "host": "this host" if here else (found["pidHost"] or "")[:100],
        "here": here,
        "seen_seconds_ago": hashes.now - int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 16 else None,
    }


def code(found: Preparation) -> Json | None:
    """The source of the script; None if the hash names none."""
    config, source, artifact, agreement = found.config, found.source, found.artifact, found.agreement
    if config is None:
        return None
    place = None if source is None else source.script if isinstance(source, LocalSource) else source.url
    digest = artifact.sha256 if artifact is not None else found.pin.sha256 if found.pin is not None else None
    return {
        "url": mask(config.url),
        "version": config.version,
        "kind": "local" if config.version == "local" else str(kind_of(config.version)),
        "resolved": mask(place) if place else None,
        "sha256": digest,
        "sha256_required": config.sha256,
        "fetched": found.pin.fetched if found.pin is not None else None,
        "here": artifact is not None,
        "contents": contents.as_json(config.asked.contents, agreement.before) if agreement is not None else None,
        "services": list(config.loop.services),
    }


def permissions(config: WorkerConfig | None, redis: str, hashes: Hashes) -> Json:
    """What is allowed and denied by kind, as lists of entry, words and place; and what every worker has."""
    both: Json = {verdict: {kind: [] for kind in Kind} for verdict in Verdict}
    if config is None:
        return {**both, "always": []}
    for line in lines(config.asked):
        where = hashes.place(line.where)
        both[line.verdict][line.kind].append({"entry": str(line.target), "words": line.words, "where": where})
    return {**both, "always": always(config.key, keys.type_key(config.type), redis)}


def limits(examined: Preparation) -> Json:
    """By name: the limit in force, and whether the hash, the policy or neither set it."""
    config = examined.config
    if config is None:
        return {}
    by_hash = config.asked.limits if examined.ceiling is None else examined.ceiling.worker.asked.limits
    found = {}
    for name, limit in LIMITS.items():
        value = getattr(config.limits, name)
        value = limit.default if value is None else value
        set_by = "hash" if name in by_hash else "policy" if name in config.asked.limits else "default"
        found[name] = {"value": value, "shown": limit.show(value) if value else "none", "set_by": set_by}
    return found


def policy(found: Preparation) -> Json | None:
    """The operator's ceiling: the most that it allows of each kind and the line that says so, and what it refuses of the hash."""
    if found.ceiling is None:
        return None
    return {
        "within": not found.refusals,
        "refused": [mask(str(error)) for error in found.refusals],
        "allows": {kind: _most(found.ceiling, kind) for kind in Kind},
        "requires": [place for section in found.ceiling.sections for place in _requires(section)],
        "shares_memory": found.ceiling.shares_memory,
    }


def _most(ceiling: Ceiling, kind: Kind) -> list[Json]:
    """From each file that sets the kind, else from the default policy."""
    found = [
        {"entries": [entry_text(entry) for entry in section.allow[kind]], "where": section.places["allow-" + kind]}
        for section in ceiling.sections
        if kind in section.allow
    ]
    return found or [{"entries": [kind.default.format(ceiling.data)], "where": "default policy"}]


def _requires(section: Any) -> list[str]:
    """What the section requires besides permissions."""
    found = []
    if section.pinned:
        found.append(f"pinned versions ({section.places['pinned']})")
    if section.local is False:
        found.append(f"no local folder ({section.places['local']})")
    if section.sha256 is not None:
        found.append(f"one of {len(section.sha256)} digests ({section.places['sha256']})")
    if section.imports is not None:
        hosts = ", ".join(f"{host}:{port}" for host, port in section.imports) or "nowhere"
        found.append(f"scripts from {hosts} ({section.places['import']})")
    if section.index is not None:
        found.append(f"packages from the index {mask(section.index)} ({section.places['index']})")
    if section.package_hosts is not None:
        hosts = ", ".join(f"{host}:{port}" for host, port in section.package_hosts) or "nowhere"
        found.append(f"wheels by URL from {hosts} ({section.places['package-hosts']})")
    if section.packages is not None:
        found.append(f"of packages {', '.join(section.packages) or 'none'} ({section.places['packages']})")
    if section.packages_size is not None:
        found.append(f"packages of at most {show_size(section.packages_size)} ({section.places['packages-size']})")
    if section.unlocked is False:
        found.append(f"a lock for all packages ({section.places['unlocked']})")
    for name, most in section.limits.items():
        if most:
            found.append(
                f"{LIMITS[name].field} of at most {LIMITS[name].show(most)} ({section.places['limit-' + name]})"
            )
    return found


def fault(error: SandboxrunError) -> Json:
    return {"error": mask(str(error)), "hint": list(masked_hint(error.hint)), "exit_code": error.exit_code}


def last_run(folder: str, type_: str, id_: str) -> Json | None:
    """The record of the last run; None if there is none, or if it cannot be read."""
    try:
        with open(os.path.join(folder, f"{type_}:{id_}.json"), "rb") as file:
            record = json.loads(file.read(RECORD_MAX_BYTES))
        found = {name: str(record[name])[:2000] for name in ("time", "origin", "sha256")}
        return {**found, "origin": mask(found["origin"]), "degraded": [str(name)[:80] for name in record["degraded"]]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
