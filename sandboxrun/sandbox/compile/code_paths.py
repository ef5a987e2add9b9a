"""Paths of the operator that are as good as code: a program that is not confined runs what is written there."""

from __future__ import annotations

import contextlib
import os
import pwd
import sys
from collections.abc import Iterable, Iterator

# In the home folder. What a shell, a login, a desktop, ssh, git, an editor or Python runs, or takes programs from.
_HOME = (
    ".profile", ".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".bash_aliases", ".bash_completion", ".selected_editor", ".zshrc",
    ".zshenv", ".zprofile", ".zlogin", ".zlogout", ".kshrc", ".mkshrc", ".shrc", ".cshrc", ".tcshrc", ".login",
    ".logout", ".inputrc", ".xprofile", ".xinitrc", ".xsession", ".xsessionrc", ".xserverrc", ".pam_environment",
    ".forward", ".procmailrc", ".ssh", ".rhosts", ".gnupg", ".netrc", ".pgpass", ".my.cnf", ".aws", ".kube", ".docker",
    ".gitconfig", ".vimrc", ".vim", ".emacs", ".emacs.d", ".tmux.conf", ".screenrc", ".gdbinit",
    ".pypirc", ".pip", ".pydistutils.cfg", ".pyenv", ".npmrc", ".cargo", ".rustup", ".nvm", ".rbenv",
    "bin", ".local/bin", ".local/lib", ".local/pipx",
)  # fmt: skip
_CONFIG = (  # in XDG_CONFIG_HOME
    "sandboxrun", "autostart", "environment.d", "systemd", "fish", "git", "nvim", "vim", "emacs", "tmux", "pip",
    "plasma-workspace", "bash_completion", "user-tmpfiles.d", "containers",
)  # fmt: skip
PLUGINS = ("share", "sandboxrun-plugins")  # in an environment, and in ~/.local after pip install --user
_DATA = (  # in XDG_DATA_HOME
    "applications", "bash-completion", "dbus-1", "systemd", "kservices5", "nautilus", "gnome-shell", "pipx", "uv", "nvim", "vim",
    PLUGINS[-1],
)  # fmt: skip
# Of the machine, which matter for root.
_MACHINE = ("/var/spool/cron", "/var/spool/at", "/var/spool/anacron", "/var/lib/dpkg", "/var/lib/systemd", "/run/systemd", "/run/udev")  # fmt: skip


def of_operator() -> tuple[str, ...]:
    """Paths, there or not. A grant that is or contains the home folder contains some of them."""
    found = list(_MACHINE)
    for home in _homes():
        found += [os.path.join(home, name) for name in _HOME]
        for variable, folder, names in (
            ("XDG_CONFIG_HOME", ".config", _CONFIG),
            ("XDG_DATA_HOME", ".local/share", _DATA),
        ):
            bases = dict.fromkeys((os.path.join(home, folder), os.environ.get(variable, "")))
            found += [os.path.join(base, name) for base in bases if os.path.isabs(base) for name in names]
    return tuple(dict.fromkeys(found))


def _homes() -> Iterator[str]:
    """The home folder of HOME, and the one of the password database, which a login takes."""
    found = [os.environ.get("HOME", "")]
    with contextlib.suppress(KeyError):
        found.append(pwd.getpwuid(os.geteuid()).pw_dir)
    yield from filter(os.path.isabs, found)


def module_names(libraries: Iterable[str]) -> frozenset[str]:
    """The names of Python's modules, of loaded ones, and of those in the `libraries` (folders)."""
    known = {*sys.stdlib_module_names, *sys.modules, "sitecustomize", "usercustomize", "sandboxrun"}
    for library in libraries:
        with contextlib.suppress(OSError):
            # A folder counts if it is a package, because a folder with data has a name, too.
            known.update(entry.partition(".")[0] for entry in os.listdir(library) if is_module(entry, library))
    return frozenset(known)


def is_importable(name: str, folder: str, modules: frozenset[str]) -> bool:
    """Whether a file or folder of this name, in a `folder` on Python's path, is a module or can stand for one of these."""
    return is_module(name, folder) or (name in modules and os.path.isdir(os.path.join(folder, name)))


def is_module(name: str, folder: str) -> bool:
    return (
        name.endswith((".py", ".pyc", ".so"))
        or name == "__pycache__"
        or os.path.exists(os.path.join(folder, name, "__init__.py"))
    )
