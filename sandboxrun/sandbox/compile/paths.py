"""From written paths to real ones: which symlinks they lead through, and who can have made those."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from sandboxrun.records import record

_LINKS_MAX = 40  # as the kernel's own limit, path_resolution(7)


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def follow(path: str) -> tuple[str, list[str]]:
    """The real path, and the symlinks on the way, each as it really lies.

    One walk gives both, so that the path that is checked is the path that is granted. A name that does not exist stays as it
    is written, and so does a symlink that the kernel would not follow (ELOOP).
    """
    place, links = "/", []
    rest = _words(os.path.join(os.getcwd(), path) if not os.path.isabs(path) else path)
    while rest:
        part = rest.pop(0)
        if part == "..":
            place = os.path.dirname(place)
            continue
        step = os.path.join(place, part)
        try:
            target = os.readlink(step)
        except OSError:  # no symlink, or nothing at all
            place = step
            continue
        links.append(step)
        if len(links) > _LINKS_MAX:
            return os.path.join(step, *rest), links
        rest = _words(target) + rest
        place = "/" if target.startswith("/") else place
    return place, links


def _words(path: str) -> list[str]:
    return [word for word in path.split("/") if word not in ("", ".")]


@record
class Ground:
    """Where no worker ever writes: `places` are real paths that no grant may reach, nor what contains them."""

    places: tuple[str, ...]

    def planted(self, links: list[str]) -> str | None:
        """The first of these symlinks that a worker can have made: this one, or another of the same user."""
        return next((link for link in links if not self._is_safe(os.path.dirname(link))), None)

    def _is_safe(self, folder: str) -> bool:
        return any(within(folder, place) or within(place, folder) for place in self.places) or _is_others(folder)


def _is_others(folder: str) -> bool:
    """Whether it belongs to another user, and we cannot write in it; nor can a worker, which has our user and less."""
    try:
        return os.stat(folder).st_uid != os.geteuid() and not os.access(folder, os.W_OK)
    except OSError:
        return False


def without(path: str, denied: Collection[str], fixed: Collection[str] = ()) -> Iterator[str]:
    """`path`, or its entries without the denied ones: Landlock only adds rights below a folder, and never removes one.

    In the second case neither the folder itself is granted nor an entry that is made later. The `fixed` are granted, but no
    folder above them, so that a worker can neither rename nor remove them. Raises OSError.
    """
    if path in denied:
        return
    if not any(within(place, path) for place in denied) and not any(
        within(place, path) and place != path for place in fixed
    ):
        yield path
        return
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.is_symlink():  # its target is granted where the target lies
                yield from without(entry.path, denied, fixed)
