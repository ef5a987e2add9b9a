"""What to paste so that a policy file allows more: lines that keep what the file says already. Imported for a refusal only."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence

from sandboxrun.config.covers import ANY_PORT
from sandboxrun.config.limits import LIMITS, show_size
from sandboxrun.config.permissions import ListenTarget, endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sandboxrun.policy.ceiling import Ceiling, Section  # which imports this file for a refusal


def list_hint(ceiling: Ceiling, section: Section | None, key: str, entries: Sequence[str]) -> tuple[str, ...] | str:
    """To add entries to the list `key` of a section; to one of this worker's own in the user's file, if there is none."""
    if section is None:
        section = ceiling.users_section
    listed = dict(_settings(section)) if section is not None else {}
    if section is None or not _is_for(section, ceiling):
        return _append_hint(ceiling, section, {**listed, key: _array([*_texts(section, key), *entries])})
    if key not in listed:
        return _edit_hint(ceiling, section.place, f"a {_escaped(f'{key} = {_array(entries)}')}")
    more = "".join(f"{_quoted(entry)}, " for entry in entries)
    return _edit_hint(ceiling, section.places[key], f"s/{key}[^[]*\\[/&{_escaped(more)}/")


def value_hint(ceiling: Ceiling, section: Section | None, key: str, value: str) -> tuple[str, ...] | str:
    """To set `key` to a value of TOML, in the same place."""
    if section is None:
        section = ceiling.users_section
    listed = dict(_settings(section)) if section is not None else {}
    if section is None or not _is_for(section, ceiling):
        return _append_hint(ceiling, section, {**listed, key: value})
    if key not in listed:
        return _edit_hint(ceiling, section.place, f"a {key} = {_escaped(value)}")
    return _edit_hint(ceiling, section.places[key], f"s/=.*/= {_escaped(value)}/")


def _is_for(section: Section, ceiling: Ceiling) -> bool:
    """Whether a section is for workers of this type alone: one with a wildcard is for others, who are to get nothing more."""
    return section.pattern in (ceiling.worker.type, f"{ceiling.worker.type}:{ceiling.worker.id}")


def _append_hint(ceiling: Ceiling, section: Section | None, settings: dict[str, str]) -> tuple[str, ...]:
    """A section of its own decides alone, so it repeats what the one with a wildcard says."""
    file = ceiling.hint if section is None else _file(section.place)
    worker = ceiling.worker
    name = f"{worker.type}:{worker.id}" if section is not None and ":" in section.pattern else worker.type
    lines = [f"{key} = {value}" for key, value in settings.items()]
    if file != ceiling.hint:
        return (f"sudo tee -a {shlex.quote(file)} >/dev/null <<'END'", "", f'[worker."{name}"]', *lines, "END")
    folder = shlex.quote(os.path.dirname(file))
    # Files that others can write are refused. The empty line ends one that the file may lack.
    return (
        f"( umask 077 && mkdir -p {folder} && cat >>{shlex.quote(file)} ) <<'END'",
        "",
        f'[worker."{name}"]',
        *lines,
        "END",
    )


def _edit_hint(ceiling: Ceiling, place: str, script: str) -> str:
    """`script`: of sed, for the line of `place`, FILE:LINE."""
    file, _, line = place.rpartition(":")
    edit, path = shlex.quote(f"{line}{script}"), shlex.quote(file)
    return f"sed -i {edit} {path}" if file == ceiling.hint else f"sudo sed -i {edit} {path}"


def _file(place: str) -> str:
    return place.rpartition(":")[0]


def _escaped(text: str) -> str:
    """For sed."""
    return re.sub(r"[\\&/]", r"\\\g<0>", text)


def _quoted(text: str) -> str:
    """As a string of TOML, whose escapes are JSON's, but for surrogate pairs, which ensure_ascii would make."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _array(entries: Sequence[str]) -> str:
    return f"[{', '.join(dict.fromkeys(map(_quoted, entries)))}]"


def _settings(section: Section) -> Iterator[tuple[str, str]]:
    """Each key of a section, and its value in TOML."""
    for key in section.places:
        verdict, _, name = key.partition("-")
        if key in ("import", "sha256", "packages", "package-hosts") or verdict == "allow":
            yield key, _array(_texts(section, key))
        elif verdict == "limit":
            limit = section.limits[name]
            yield key, _quoted(LIMITS[name].show(limit)) if limit else "0"
        elif key == "index":
            yield key, _quoted(section.index or "")
        elif key == "packages-size":
            yield key, _quoted(show_size(section.packages_size or 0))
        else:
            yield key, "true" if getattr(section, key.replace("-", "_")) else "false"


def _texts(section: Section | None, key: str) -> list[str]:
    """The entries of a list as the file has them; none if the section does not set it."""
    if section is None or key not in section.places:
        return []
    if key in ("import", "package-hosts"):
        return [endpoint(*host) for host in (section.imports if key == "import" else section.package_hosts) or ()]
    if key == "packages":
        return list(section.packages or ())
    if key == "sha256":
        return sorted(section.sha256 or ())
    return [entry_text(entry) for entry in section.allow[key.removeprefix("allow-")]]


def entry_text(entry: Any) -> str:
    """An entry of a permission list, of which some only a policy has."""
    if isinstance(entry, ListenTarget) and entry.port == ANY_PORT:
        return str(entry).removesuffix(str(ANY_PORT)) + "*"
    return str(entry)
