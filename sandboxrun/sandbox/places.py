"""Places of the operator's that are as good as code: what is written there runs outside of the sandbox, sooner or later."""

from __future__ import annotations

import os
import pwd
import site
import sys
from collections.abc import Iterable, Iterator

# In the home folder. What a shell, a login, a desktop, ssh, git, an editor or Python runs, or takes programs from.
_HOME = (
    ".profile", ".bashrc", ".bash_profile", ".bash_login", ".bash_logout", ".bash_aliases", ".bash_completion", ".zshrc",
    ".zshenv", ".zprofile", ".zlogin", ".zlogout", ".kshrc", ".mkshrc", ".shrc", ".cshrc", ".tcshrc", ".login",
    ".logout", ".inputrc", ".xprofile", ".xinitrc", ".xsession", ".xsessionrc", ".xserverrc", ".pam_environment",
    ".forward", ".procmailrc", ".ssh", ".rhosts", ".gnupg", ".netrc", ".pgpass", ".my.cnf", ".aws", ".kube", ".docker",
    ".gitconfig", ".vimrc", ".vim", ".emacs", ".emacs.d", ".tmux.conf", ".screenrc", ".gdbinit",
    ".pypirc", ".pip", ".pydistutils.cfg", ".pyenv", ".npmrc", ".cargo", ".rustup", ".nvm", ".rbenv",
    "bin", ".local/bin", ".local/lib", ".local/pipx",
)  # fmt: skip
_CONFIG = (  # in XDG_CONFIG_HOME
    "sandboxrun", "autostart", "environment.d", "systemd", "fish", "git", "nvim", "vim", "emacs", "tmux", "pip",
    "plasma-workspace", "user-tmpfiles.d", "containers",
)  # fmt: skip
_DATA = ("applications", "dbus-1", "systemd", "kservices5", "nautilus", "gnome-shell", "pipx", "uv", "nvim", "vim")  # in XDG_DATA_HOME  # fmt: skip
# Of the machine, which matter where we are root.
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
    """The one that HOME says, and the one of the password database: a login takes that."""
    if os.path.isabs(home := os.environ.get("HOME", "")):
        yield home
    try:
        yield pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return


def searched() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Folders on PYTHONPATH and PATH, there or not: where the next start takes modules and programs from.

    The second are those that hold other things as well: the current folder, for `python -m` or an empty entry, and the
    root. There only what has a module's name is code.
    """
    try:
        here = os.getcwd()
    except OSError:  # removed: nothing is found in it
        here = ""
    modules = [entry or "." for entry in sys.path]
    if modules and _run_as_module():
        modules[0] = "."
    code: dict[str, None] = {}
    mixed: dict[str, None] = {}
    for entry in (*modules, *os.environ.get("PATH", os.defpath).split(os.pathsep), site.getusersitepackages()):
        if entry in ("", "."):
            mixed[here] = None
        else:
            (mixed if entry == "/" else code)[os.path.join(here, entry)] = None
    return tuple(filter(os.path.isabs, code)), tuple(filter(os.path.isabs, mixed))


def _run_as_module() -> bool:
    """Whether this is `python -m`, which puts the current folder first on Python's path."""
    return getattr(sys.modules.get("__main__"), "__spec__", None) is not None and not sys.flags.safe_path


def is_importable(name: str, folder: str, libraries: Iterable[str]) -> bool:
    """Whether a file or folder of this name, in a `folder` that is searched first, can stand for a module of Python's, of
    the `libraries` (folders) or of what is loaded now."""
    stem = name.partition(".")[0]
    known = {*sys.stdlib_module_names, "sitecustomize", "usercustomize", "sandboxrun"}
    known.update(module.partition(".")[0] for module in sys.modules)
    for library in libraries:
        try:
            known.update(entry.partition(".")[0] for entry in os.listdir(library))
        except OSError:
            continue
    return (
        stem in known
        or name.endswith((".py", ".pyc", ".so"))
        or os.path.exists(os.path.join(folder, name, "__init__.py"))
    )
